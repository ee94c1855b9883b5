{{/* The two containers of the sidecar, in either form. */}}

{{/* `native` or `ordinary`: how the sidecar's containers stand in the pod. A pod needs a container that is no init container. */}}
{{- define "model-sidecar.form" -}}
{{- $hasMain := or .Values.model.image .Values.extraContainers (not .Values.deployment.enabled) -}}
{{- $isKnown := semverCompare ">=1.29-0" .Capabilities.KubeVersion.Version -}}
{{- if not $hasMain -}}
ordinary
{{- else if eq .Values.sidecar.form "auto" -}}
{{- ternary "native" "ordinary" $isKnown -}}
{{- else -}}
{{- .Values.sidecar.form -}}
{{- end -}}
{{- end -}}

{{/* Items of `initContainers`: what fetches the models, and the sidecar in its native form. */}}
{{- define "model-sidecar.initContainers" -}}
{{- include "model-sidecar.checks" . -}}
{{- if eq .Values.models.source "init" }}
{{ include "model-sidecar.modelsContainer" . }}
{{- end }}
{{- if eq (include "model-sidecar.form" .) "native" }}
{{ include "model-sidecar.gateway" . }}
{{- if .Values.monitor.enabled }}
{{ include "model-sidecar.monitor" . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Items of `containers`: the sidecar in its ordinary form. */}}
{{- define "model-sidecar.containers" -}}
{{- include "model-sidecar.checks" . -}}
{{- if eq (include "model-sidecar.form" .) "ordinary" }}
{{ include "model-sidecar.gateway" . }}
{{- if .Values.monitor.enabled }}
{{ include "model-sidecar.monitor" . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "model-sidecar.gateway" -}}
{{- $ports := include "model-sidecar.ports" . | fromYaml -}}
{{- $values := .Values.gateway -}}
- name: gateway
  {{- include "model-sidecar.common" . | nindent 2 }}
  command: [sidecar, gateway, /etc/model-sidecar/config.yaml]
  ports:
    {{- range $name := list "grpc" "http" "health" "hooks" "admin" }}
    {{- with index $ports $name }}
    - name: {{ $name }}
      containerPort: {{ . }}
      protocol: TCP
    {{- end }}
    {{- end }}
  env:
    {{- include "model-sidecar.env" (dict "root" . "name" "gateway" "secrets" (include "model-sidecar.gatewaySecrets" . | fromYaml).names "extra" $values.env) | nindent 4 }}
  {{- with $values.envFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.probes.startup }}
  startupProbe:
    {{- include "model-sidecar.probe" (dict "port" $ports.health "service" "live" "fields" .) | nindent 4 }}
  {{- end }}
  {{- with $values.probes.liveness }}
  livenessProbe:
    {{- include "model-sidecar.probe" (dict "port" $ports.health "service" "live" "fields" .) | nindent 4 }}
  {{- end }}
  {{- with $values.probes.readiness }}
  readinessProbe:
    {{- include "model-sidecar.probe" (dict "port" $ports.health "service" "" "fields" .) | nindent 4 }}
  {{- end }}
  lifecycle:
    preStop:
      exec:
        command: [sidecar, drain, /etc/model-sidecar/config.yaml]
  resources:
    {{- include "model-sidecar.resources" (dict "root" . "name" "gateway" "resources" $values.resources) | nindent 4 }}
  volumeMounts:
    {{- include "model-sidecar.sidecarMounts" . | nindent 4 }}
    - name: sidecar-tmp-gateway
      mountPath: /tmp
    {{- if .Values.sharedMemory.enabled }}
    - name: sidecar-shm
      mountPath: /dev/shm
    {{- end }}
    {{- with $values.volumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "model-sidecar.monitor" -}}
{{- $ports := include "model-sidecar.ports" . | fromYaml -}}
{{- $values := .Values.monitor -}}
- name: monitor
  {{- include "model-sidecar.common" . | nindent 2 }}
  command: [sidecar, monitor, /etc/model-sidecar/config.yaml]
  ports:
    {{- range $name := list "monitor-http" "monitor-health" "metrics" }}
    {{- with index $ports $name }}
    - name: {{ $name }}
      containerPort: {{ . }}
      protocol: TCP
    {{- end }}
    {{- end }}
  env:
    {{- include "model-sidecar.env" (dict "root" . "name" "monitor" "secrets" (keys .Values.secrets | sortAlpha) "store" true "extra" $values.env) | nindent 4 }}
  {{- with $values.envFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.probes.startup }}
  startupProbe:
    {{- include "model-sidecar.probe" (dict "port" (index $ports "monitor-health") "service" "live" "fields" .) | nindent 4 }}
  {{- end }}
  {{- with $values.probes.liveness }}
  livenessProbe:
    {{- include "model-sidecar.probe" (dict "port" (index $ports "monitor-health") "service" "live" "fields" .) | nindent 4 }}
  {{- end }}
  lifecycle:
    {{- include "model-sidecar.modelLifecycle" . | nindent 4 }}
  resources:
    {{- include "model-sidecar.resources" (dict "root" . "name" "monitor" "resources" $values.resources) | nindent 4 }}
  volumeMounts:
    {{- include "model-sidecar.sidecarMounts" . | nindent 4 }}
    - name: sidecar-tmp-monitor
      mountPath: /tmp
    {{- if include "model-sidecar.callsKubernetes" . }}
    - name: sidecar-token
      mountPath: /var/run/secrets/kubernetes.io/serviceaccount
      readOnly: true
    {{- end }}
    {{- with $values.volumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* What both containers have alike. */}}
{{- define "model-sidecar.common" -}}
image: {{ include "model-sidecar.image" . }}
{{- with .Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
{{- if eq (include "model-sidecar.form" .) "native" }}
restartPolicy: Always
{{- end }}
{{- with .Values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A gRPC probe on the plaintext health listener; what it asks is the chart's, how often is the values'. */}}
{{- define "model-sidecar.probe" -}}
grpc:
  port: {{ .port }}
  service: {{ .service | quote }}
{{ toYaml (omit .fields "grpc" "httpGet" "tcpSocket" "exec") }}
{{- end -}}

{{/* Requests and limits, with the devices where this container gets them. */}}
{{- define "model-sidecar.resources" -}}
{{- $resources := deepCopy (default dict .resources) -}}
{{- $gpu := .root.Values.gpu -}}
{{- with include "model-sidecar.devices" . -}}
{{- $limits := default dict $resources.limits -}}
{{- $_ := set $limits $gpu.resource . -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Which container gets the devices. */}}
{{- define "model-sidecar.gpuContainer" -}}
{{- default (ternary "model" "gateway" (not (empty .Values.model.image))) .Values.gpu.container -}}
{{- end -}}

{{/* Volume mounts of both containers. */}}
{{- define "model-sidecar.sidecarMounts" -}}
- name: sidecar-config
  mountPath: /etc/model-sidecar
  readOnly: true
- name: sidecar-state
  mountPath: /var/lib/model-sidecar
- name: sidecar-run
  mountPath: /run/model-sidecar
{{- if .Values.tls.secretName }}
- name: sidecar-tls
  mountPath: /etc/model-sidecar-tls
  readOnly: true
{{- end }}
{{- if ne .Values.models.source "none" }}
{{ include "model-sidecar.modelsMount" . }}
{{- end }}
{{- end -}}

{{- define "model-sidecar.modelsMount" -}}
- name: sidecar-models
  mountPath: {{ .Values.models.mountPath }}
  readOnly: true
  {{- with (index .Values.models .Values.models.source).subPath }}
  subPath: {{ . }}
  {{- end }}
{{- end -}}

{{/* Volume mounts of the model container: the models, and shared memory. May be empty. */}}
{{- define "model-sidecar.modelVolumeMounts" -}}
{{- if ne .Values.models.source "none" }}
{{ include "model-sidecar.modelsMount" . }}
{{- end }}
{{- if .Values.sharedMemory.enabled }}
- name: sidecar-shm
  mountPath: /dev/shm
{{- end }}
{{- end -}}

{{/* `lifecycle` of a container that must outlive the requests in flight: its preStop waits until the gateway has drained. */}}
{{- define "model-sidecar.modelLifecycle" -}}
preStop:
  httpGet:
    path: /drained
    port: {{ (include "model-sidecar.ports" . | fromYaml).hooks }}
    scheme: HTTP
{{- end -}}

{{/* `env` of a container: secrets by reference, and what the container's own values say; those come last, and win. */}}
{{- define "model-sidecar.env" -}}
{{- $values := .root.Values -}}
{{- $env := list (dict "name" "HOME" "value" "/tmp") -}}
{{- if and .name (include "model-sidecar.hidesDevices" .) -}}
{{- $env = append $env (dict "name" "NVIDIA_VISIBLE_DEVICES" "value" "void") -}}
{{- end -}}
{{- if eq (default "" .name) "monitor" -}}
{{- range $name, $path := dict "POD_NAME" "metadata.name" "POD_UID" "metadata.uid" "POD_NAMESPACE" "metadata.namespace" "NODE_NAME" "spec.nodeName" -}}
{{- $env = append $env (dict "name" $name "valueFrom" (dict "fieldRef" (dict "fieldPath" $path))) -}}
{{- end -}}
{{- end -}}
{{- if and .store $values.store.postgresql.existingSecret -}}
{{- $reference := dict "name" $values.store.postgresql.existingSecret "key" $values.store.postgresql.key -}}
{{- $env = append $env (dict "name" "MODEL_SIDECAR_STORE_URL" "valueFrom" (dict "secretKeyRef" $reference)) -}}
{{- end -}}
{{- range .secrets -}}
{{- $reference := pick (index $values.secrets .) "name" "key" -}}
{{- $env = append $env (dict "name" . "valueFrom" (dict "secretKeyRef" $reference)) -}}
{{- end -}}
{{- $said := list -}}
{{- range .extra }}{{ $said = append $said .name }}{{ end -}}
{{- $all := list -}}
{{- range $env -}}
{{- if not (has .name $said) }}{{ $all = append $all . }}{{ end -}}
{{- end -}}
{{- toYaml (concat $all (default list .extra)) -}}
{{- end -}}

{{/* The secrets that the gateway needs, as YAML `names: […]`: those that its part of the configuration names. */}}
{{- define "model-sidecar.gatewaySecrets" -}}
{{- $text := toYaml (default dict .Values.config.gateway) -}}
{{- $names := list -}}
{{- range $name := keys .Values.secrets | sortAlpha -}}
{{- if or $.Values.configMap.existing (contains (printf "${%s}" $name) $text) -}}
{{- $names = append $names $name -}}
{{- end -}}
{{- end -}}
{{- toYaml (dict "names" $names) -}}
{{- end -}}

{{/* The container that fetches the models before anything else starts. */}}
{{- define "model-sidecar.modelsContainer" -}}
{{- $init := .Values.models.init -}}
- name: models
  image: {{ $init.image }}
  {{- with $init.pullPolicy }}
  imagePullPolicy: {{ . }}
  {{- end }}
  {{- with $init.command }}
  command:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $init.args }}
  args:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  env:
    {{- include "model-sidecar.env" (dict "root" . "secrets" list "extra" $init.env) | nindent 4 }}
  {{- with $init.envFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  resources:
    {{- toYaml $init.resources | nindent 4 }}
  {{- with merge (deepCopy $init.securityContext) .Values.securityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    - name: sidecar-models
      mountPath: {{ .Values.models.mountPath }}
    - name: sidecar-tmp-models
      mountPath: /tmp
{{- end -}}
