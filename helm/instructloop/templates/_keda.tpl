{{- define "instructloop.kedaRedis" -}}
{{- if .keda.sentinels -}}
addresses: {{ .keda.sentinels | quote }}
sentinelMaster: {{ .keda.sentinelService | quote }}
{{- else -}}
address: {{ .address | quote }}
{{- end }}
databaseIndex: {{ .keda.database | quote }}
enableTLS: {{ .keda.tls | quote }}
{{- end -}}
