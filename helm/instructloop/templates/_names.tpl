{{/* Names, labels and images: what many files say alike. */}}

{{- define "instructloop.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "instructloop.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "instructloop.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "instructloop.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Takes a dict of root and component. */}}
{{- define "instructloop.selector" -}}
app.kubernetes.io/name: {{ include "instructloop.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "instructloop.labels" -}}
{{ include "instructloop.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: instructloop
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "instructloop.metadata" -}}
name: {{ include "instructloop.fullname" .root }}-{{ .component }}
namespace: {{ .root.Release.Namespace }}
labels: {{- include "instructloop.labels" . | nindent 2 }}
{{- end -}}

{{/* Takes an image's values. */}}
{{- define "instructloop.image" -}}
{{ .repository }}:{{ .tag }}{{ with .digest }}@{{ . }}{{ end }}
{{- end -}}

{{/* Takes a dict of root and part (the values of engines or workers): with GPUs the other image. */}}
{{- define "instructloop.imageFor" -}}
{{- $image := .root.Values.image -}}
{{- if .part.gpu -}}{{- if gt (int .part.gpu.count) 0 -}}{{- $image = .root.Values.gpuImage -}}{{- end -}}{{- end -}}
image: {{ include "instructloop.image" $image | quote }}
imagePullPolicy: {{ $image.pullPolicy }}
{{- end -}}

{{- define "instructloop.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "instructloop.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "instructloop.claimName" -}}
{{- default (printf "%s-state" (include "instructloop.fullname" .)) .Values.storage.existingClaim -}}
{{- end -}}

{{/* "true" where engines of our own run. */}}
{{- define "instructloop.ownEngines" -}}
{{- if not .Values.externalEngines.urls -}}true{{- end -}}
{{- end -}}

{{/* "true" where engines keep versions on a disk of their own. */}}
{{- define "instructloop.remotePolicies" -}}
{{- if .Values.storage.policiesUrl -}}true{{- end -}}
{{- end -}}
