{{/* The settings of a process as variables. Takes a dict of root and component. */}}

{{- define "instructloop.settings" -}}
{{- $values := .root.Values -}}
{{- $external := $values.externalEngines.urls -}}
- {name: INSTRUCTLOOP_STATE_DIR, value: {{ include "instructloop.stateDir" . }}}
- {name: INSTRUCTLOOP_SECRETS_DIR, value: /var/lib/instructloop/secrets}
- {name: INSTRUCTLOOP_MODEL, value: {{ $values.model | quote }}}
- {name: INSTRUCTLOOP_PROFILE, value: {{ $values.profile }}}
- {name: INSTRUCTLOOP_PROMOTION, value: {{ $values.promotion }}}
- {name: INSTRUCTLOOP_LEARNING__ENABLED, value: {{ and $values.learning (empty $external) | quote }}}
{{- if not (hasKey $values.settings "LOG_FORMAT") }}
- {name: INSTRUCTLOOP_LOG_FORMAT, value: json}
{{- end }}
{{ include "instructloop.redisEnv" .root }}
{{- with $values.storage.policiesUrl }}
- {name: INSTRUCTLOOP_POLICIES_URL, value: {{ . | quote }}}
{{- end }}
{{- with $values.storage.archiveUrl }}
- {name: INSTRUCTLOOP_LOG__ARCHIVE, value: {{ . | quote }}}
{{- end }}
{{- if $external }}
- {name: INSTRUCTLOOP_ENGINE__URLS, value: {{ $external | toJson | quote }}}
{{- end }}
{{- include "instructloop.objectStoreEnv" .root }}
- {name: XDG_CACHE_HOME, value: /var/cache/instructloop}
- {name: HF_HOME, value: /var/cache/instructloop/huggingface}
{{- range $name, $value := $values.settings }}
- name: INSTRUCTLOOP_{{ $name }}
  value: {{ ternary $value ($value | toJson) (kindIs "string" $value) | quote }}
{{- end }}
{{- end -}}

{{- define "instructloop.objectStoreEnv" -}}
{{- $s3 := .Values.storage.s3 -}}
{{- with $s3.existingSecret }}
{{- range list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
- name: {{ . }}
  valueFrom:
    secretKeyRef: {name: {{ $s3.existingSecret }}, key: {{ . }}}
{{- end }}
{{- end }}
{{- with $s3.endpointUrl }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- with $s3.region }}
- {name: AWS_DEFAULT_REGION, value: {{ . | quote }}}
{{- end }}
{{- end -}}

{{/* Where a process that serves no clients shows its metrics. */}}
{{- define "instructloop.metricsEnv" -}}
- {name: INSTRUCTLOOP_METRICS_PORT, value: "9100"}
- {name: INSTRUCTLOOP_METRICS_HOST, value: 0.0.0.0}
{{- end -}}
