{{/* Rules of egress by what they lead to. Each takes the root. */}}

{{- define "instructloop.toDns" -}}
- ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
  {{- with .Values.networkPolicy.dns }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "instructloop.toRedis" -}}
{{- if .Values.redis.trial.enabled -}}
- ports: [{port: 6379, protocol: TCP}]
  to:
    - podSelector:
        matchLabels: {{- include "instructloop.selector" (dict "root" . "component" "redis") | nindent 10 }}
{{- if or .Values.redis.brokerSecret.name .Values.redis.limitsSecret.name }}
{{ include "instructloop.toOtherRedis" . }}
{{- end }}
{{- else -}}
{{ include "instructloop.toOtherRedis" . }}
{{- end }}
{{- end -}}

{{- define "instructloop.toOtherRedis" -}}
- ports:
    {{- range .Values.networkPolicy.redisPorts }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with .Values.networkPolicy.redis }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Nothing where versions and archive are in the claim. */}}
{{- define "instructloop.toObjectStore" -}}
{{- if or .Values.storage.policiesUrl .Values.storage.archiveUrl -}}
- ports:
    {{- range .Values.networkPolicy.objectStorePorts }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with .Values.networkPolicy.objectStore }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "instructloop.toEngines" -}}
{{- if include "instructloop.ownEngines" . -}}
- ports: [{port: 8100, protocol: TCP}]
  to:
    - podSelector:
        matchLabels: {{- include "instructloop.selector" (dict "root" . "component" "engine") | nindent 10 }}
{{- else -}}
# a Service's port is not its pods', which is what counts here
- to: {{- toYaml .Values.networkPolicy.externalEngines | nindent 4 }}
{{- end }}
{{- end -}}

{{- define "instructloop.fromPrometheus" -}}
- ports: [{port: 9100, protocol: TCP}]
  {{- with .Values.networkPolicy.prometheus }}
  from: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "instructloop.policyHead" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{- include "instructloop.metadata" . | nindent 2 }}
spec:
  podSelector:
    matchLabels: {{- include "instructloop.selector" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
{{- end -}}
