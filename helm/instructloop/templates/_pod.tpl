{{/* What every pod of ours has alike: walls, folders, settings. Each takes a dict of root and component. */}}

{{- define "instructloop.podWalls" -}}
serviceAccountName: {{ include "instructloop.serviceAccountName" .root }}
automountServiceAccountToken: false
# else a Service called instructloop-... would become variables that look like settings
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user | default 10001 }}
  runAsGroup: {{ .user | default 10001 }}
  fsGroup: {{ .user | default 10001 }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "instructloop.containerWalls" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Takes the values of a part. */}}
{{- define "instructloop.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "instructloop.spread" -}}
topologySpreadConstraints:
{{- with .part.topologySpreadConstraints }}
{{- toYaml . | nindent 2 }}
{{- else }}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "instructloop.selector" $ | nindent 8 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Resources of a part, with its GPUs. */}}
{{- define "instructloop.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if gt (int .gpu.count) 0 -}}
{{- $_ := set $resources.requests .gpu.resource (int .gpu.count) -}}
{{- $_ := set $resources.limits .gpu.resource (int .gpu.count) -}}
{{- end -}}
resources: {{- toYaml $resources | nindent 2 }}
{{- end -}}

{{- define "instructloop.stateDir" -}}
{{- $own := and (eq .component "engine") (include "instructloop.remotePolicies" .root) -}}
{{- ternary "/var/local/instructloop/state" "/var/lib/instructloop/state" (not (empty $own)) -}}
{{- end -}}

{{- define "instructloop.volumes" -}}
- name: shared
  persistentVolumeClaim: {claimName: {{ include "instructloop.claimName" .root }}}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
- name: cache
  emptyDir: {sizeLimit: {{ ternary "10Gi" "1Gi" (has .component (list "engine" "worker" "init")) }}}
{{- if has .component (list "engine" "worker") }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .part.shmSize }}}
{{- end }}
{{- if and (eq .component "engine") (include "instructloop.remotePolicies" .root) }}
- name: local
  emptyDir: {sizeLimit: {{ .part.localSize }}}
{{- end }}
{{- with .root.Values.redis.tls.secretName }}
- name: redis-tls
  secret: {secretName: {{ . }}, defaultMode: 288}
{{- end }}
{{- with .root.Values.secrets.existingSecret }}
- name: keys
  secret: {secretName: {{ . }}, defaultMode: 288}
{{- end }}
{{- end -}}

{{- define "instructloop.mounts" -}}
- {name: shared, mountPath: /var/lib/instructloop}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /var/cache/instructloop}
{{- if has .component (list "engine" "worker") }}
- {name: shm, mountPath: /dev/shm}
{{- end }}
{{- if and (eq .component "engine") (include "instructloop.remotePolicies" .root) }}
- {name: local, mountPath: /var/local/instructloop}
{{- end }}
{{- if .root.Values.redis.tls.secretName }}
- {name: redis-tls, mountPath: /etc/instructloop/redis, readOnly: true}
{{- end }}
{{- end -}}

{{/* Makes the folders, closes them to others, and puts given keys where there are none. */}}
{{- define "instructloop.prepare" -}}
- name: prepare
  {{- include "instructloop.imageFor" . | nindent 2 }}
  command: [/bin/sh, -euc]
  args:
    - |
      umask 077
      mkdir -p "$INSTRUCTLOOP_STATE_DIR" "$INSTRUCTLOOP_SECRETS_DIR"
      # the socket of a stage's engine stays in this pod: not every shared file system takes one
      mkdir -p "${TMPDIR:-/tmp}/learner"
      ln -sn "${TMPDIR:-/tmp}/learner" "$INSTRUCTLOOP_STATE_DIR/learner" 2>/dev/null || [ -d "$INSTRUCTLOOP_STATE_DIR/learner" ]
      # the kubelet opens files to the pod's group when it gives a volume to it
      find "$INSTRUCTLOOP_SECRETS_DIR" -type f -perm /077 -exec chmod go-rwx {} +
      for given in /etc/instructloop/keys/*; do
        name="$INSTRUCTLOOP_SECRETS_DIR/${given##*/}"
        if [ ! -f "$given" ] || [ -e "$name" ]; then continue; fi
        beside="$INSTRUCTLOOP_SECRETS_DIR/.${given##*/}.$HOSTNAME"
        cat "$given" > "$beside"
        ln "$beside" "$name" || [ -e "$name" ]
        rm "$beside"
      done
  env:
    - {name: INSTRUCTLOOP_STATE_DIR, value: {{ include "instructloop.stateDir" . }}}
    - {name: INSTRUCTLOOP_SECRETS_DIR, value: /var/lib/instructloop/secrets}
  resources:
    requests: {cpu: 50m, memory: 32Mi, ephemeral-storage: 16Mi}
    limits: {cpu: 500m, memory: 64Mi, ephemeral-storage: 64Mi}
  {{- include "instructloop.containerWalls" . | nindent 2 }}
  volumeMounts:
    - {name: shared, mountPath: /var/lib/instructloop}
    - {name: tmp, mountPath: /tmp}
    {{- if and (eq .component "engine") (include "instructloop.remotePolicies" .root) }}
    - {name: local, mountPath: /var/local/instructloop}
    {{- end }}
    {{- if .root.Values.secrets.existingSecret }}
    - {name: keys, mountPath: /etc/instructloop/keys, readOnly: true}
    {{- end }}
{{- end -}}

{{/* The process lives; slow enough for a machine that learns. */}}
{{- define "instructloop.liveness" -}}
startupProbe:
  tcpSocket: {port: metrics}
  periodSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /metrics, port: metrics}
  periodSeconds: 30
  timeoutSeconds: 15
  failureThreshold: 6
{{- end -}}
