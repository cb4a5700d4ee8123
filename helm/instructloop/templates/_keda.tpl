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

{{/* Where KEDA reads user names, passwords and certificates; empty where Redis asks for none. */}}
{{- define "instructloop.kedaSecrets" -}}
{{- $keda := .Values.workers.keda -}}
{{- $login := $keda.passwordSecret -}}
{{- $sentinel := $keda.sentinelSecret -}}
{{- $tls := .Values.redis.tls -}}
{{- $found := list -}}
{{- if $login.name -}}
{{- $found = append $found (dict "parameter" "password" "name" $login.name "key" $login.key) -}}
{{- else if .Values.redis.trial.enabled -}}
{{- $found = append $found (dict "parameter" "password" "name" (include "instructloop.trialSecret" .) "key" $login.key) -}}
{{- end -}}
{{- if $login.usernameKey -}}
{{- if not $login.name -}}
{{- fail "workers.keda.passwordSecret.usernameKey is a key of passwordSecret.name: set that, too" -}}
{{- end -}}
{{- $found = append $found (dict "parameter" "username" "name" $login.name "key" $login.usernameKey) -}}
{{- end -}}
{{- if $sentinel.name -}}
{{- if not $keda.sentinels -}}
{{- fail "workers.keda.sentinelSecret is for Sentinels: set workers.keda.sentinels, or leave it out" -}}
{{- end -}}
{{- $found = append $found (dict "parameter" "sentinelPassword" "name" $sentinel.name "key" $sentinel.key) -}}
{{- if $sentinel.usernameKey -}}
{{- $found = append $found (dict "parameter" "sentinelUsername" "name" $sentinel.name "key" $sentinel.usernameKey) -}}
{{- end -}}
{{- end -}}
{{- if and $keda.tls $tls.secretName -}}
{{- $found = append $found (dict "parameter" "ca" "name" $tls.secretName "key" "ca.crt") -}}
{{- if $tls.clientCertificate -}}
{{- $found = append $found (dict "parameter" "cert" "name" $tls.secretName "key" "tls.crt") -}}
{{- $found = append $found (dict "parameter" "key" "name" $tls.secretName "key" "tls.key") -}}
{{- end -}}
{{- end -}}
{{- if $found }}{{ toYaml $found }}{{ end -}}
{{- end -}}
