{{- define "instructloop.initPod" -}}
{{- include "instructloop.podWalls" . }}
restartPolicy: {{ .restart | default "OnFailure" }}
terminationGracePeriodSeconds: 30
{{- include "instructloop.placement" .root.Values.beat }}
initContainers: {{- include "instructloop.prepare" . | nindent 2 }}
containers:
  - name: init
    {{- include "instructloop.imageFor" . | nindent 4 }}
    args: [{{ .command | default "init" }}]
    env: {{- include "instructloop.settings" . | nindent 6 }}
    resources: {{- toYaml .part.resources | nindent 6 }}
    {{- include "instructloop.containerWalls" . | nindent 4 }}
    volumeMounts: {{- include "instructloop.mounts" . | nindent 6 }}
volumes: {{- include "instructloop.volumes" . | nindent 2 }}
{{- end -}}
