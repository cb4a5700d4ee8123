{{/* Where Redis is: the only place that knows the forms of its URL. */}}

{{- define "instructloop.trialSecret" -}}
{{- default (printf "%s-redis" (include "instructloop.fullname" .)) .Values.redis.trial.existingSecret -}}
{{- end -}}

{{/* A URL without a password, or nothing. */}}
{{- define "instructloop.redisPlainUrl" -}}
{{- $sentinel := .Values.redis.sentinel -}}
{{- $cluster := .Values.redis.cluster -}}
{{- if .Values.redis.url -}}
{{- .Values.redis.url -}}
{{- else if $sentinel.hosts -}}
{{- $scheme := ternary "rediss+sentinel" "redis+sentinel" $sentinel.tls -}}
{{- printf "%s://%s/%s/%d" $scheme (join "," $sentinel.hosts) $sentinel.service (int $sentinel.database) -}}
{{- else if $cluster.nodes -}}
{{- printf "%s://%s" (ternary "rediss+cluster" "redis+cluster" $cluster.tls) (join "," $cluster.nodes) -}}
{{- end -}}
{{- end -}}

{{/* Fails unless exactly one Redis is named, and another beside a Cluster. */}}
{{- define "instructloop.checkRedis" -}}
{{- $given := list -}}
{{- if .Values.redis.existingSecret.name }}{{ $given = append $given "redis.existingSecret.name" }}{{ end -}}
{{- if .Values.redis.url }}{{ $given = append $given "redis.url" }}{{ end -}}
{{- if .Values.redis.sentinel.hosts }}{{ $given = append $given "redis.sentinel.hosts" }}{{ end -}}
{{- if .Values.redis.cluster.nodes }}{{ $given = append $given "redis.cluster.nodes" }}{{ end -}}
{{- if .Values.redis.trial.enabled }}{{ $given = append $given "redis.trial.enabled" }}{{ end -}}
{{- if ne (len $given) 1 -}}
{{- $said := ternary "none is" (printf "%s are" (join ", " $given)) (empty $given) -}}
{{- fail (printf "exactly one Redis is needed, %s given: set redis.existingSecret.name, redis.url, redis.sentinel.hosts, redis.cluster.nodes or redis.trial.enabled" $said) -}}
{{- end -}}
{{- if and (contains "+cluster://" (include "instructloop.redisPlainUrl" .)) (not .Values.redis.brokerSecret.name) -}}
{{- fail "Celery's messages cannot be in a Redis Cluster: set redis.brokerSecret.name to a Secret with the URL of another Redis" -}}
{{- end -}}
{{- end -}}

{{- define "instructloop.redisEnv" -}}
{{- include "instructloop.checkRedis" . -}}
{{- $redis := .Values.redis -}}
- name: INSTRUCTLOOP_REDIS_URL
{{- with include "instructloop.redisPlainUrl" . }}
  value: {{ . | quote }}
{{- else }}
  valueFrom:
    secretKeyRef:
      {{- if $redis.trial.enabled }}
      name: {{ include "instructloop.trialSecret" . }}
      key: redis-url
      {{- else }}
      name: {{ $redis.existingSecret.name }}
      key: {{ $redis.existingSecret.key }}
      {{- end }}
{{- end }}
{{- range $name, $from := dict "BROKER" $redis.brokerSecret "LIMITS" $redis.limitsSecret }}
{{- if $from.name }}
- name: INSTRUCTLOOP_REDIS_{{ $name }}_URL
  valueFrom:
    secretKeyRef: {name: {{ $from.name }}, key: {{ $from.key }}}
{{- end }}
{{- end }}
- name: INSTRUCTLOOP_DURABILITY
  value: {{ $redis.durability }}
{{- if gt (int $redis.waitReplicas) 0 }}
- name: INSTRUCTLOOP_REDIS_WAIT_REPLICAS
  value: {{ int $redis.waitReplicas | quote }}
- name: INSTRUCTLOOP_REDIS_WAIT_SECONDS
  value: {{ $redis.waitSeconds | quote }}
{{- end }}
{{- if $redis.tls.secretName }}
- name: INSTRUCTLOOP_REDIS_CA_FILE
  value: /etc/instructloop/redis/ca.crt
{{- if $redis.tls.clientCertificate }}
- name: INSTRUCTLOOP_REDIS_CERTIFICATE_FILE
  value: /etc/instructloop/redis/tls.crt
- name: INSTRUCTLOOP_REDIS_KEY_FILE
  value: /etc/instructloop/redis/tls.key
{{- end }}
{{- end }}
{{- end -}}
