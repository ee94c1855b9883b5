{{/* What contradicts itself in the values, all of it at once: each a sentence with the way out. */}}

{{/* Fails where there is a problem; prints nothing. */}}
{{- define "model-sidecar.checks" -}}
{{- $problems := list -}}
{{- range $check := list "source" "addresses" "folders" "ports" "monitor" "tls" "store" "claim" "stopping" "models" "remotes" "pod" "scaling" "metrics" "secrets" "variables" -}}
{{- range splitList "\n" (include (printf "model-sidecar.checks.%s" $check) $) -}}
{{- with trim . -}}
{{- $problems = append $problems (printf "  - %s" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $problems -}}
{{- fail (printf "these values cannot be:\n%s\n" (join "\n" $problems)) -}}
{{- end -}}
{{- end -}}

{{/* Where the configuration comes from. */}}
{{- define "model-sidecar.checks.source" -}}
{{- if and .Values.configMap.existing .Values.config }}
config is set, and configMap.existing ({{ .Values.configMap.existing }}) too: leave one away, the sidecar reads one file
{{- end }}
{{- if not (or .Values.configMap.existing .Values.config.models) }}
config.models is empty: say there what is served (see the chart's README), or name a ConfigMap in configMap.existing
{{- end }}
{{- end -}}

{{/* The host of an address, without the port. */}}
{{- define "model-sidecar.host" -}}
{{- regexReplaceAll ":[0-9]*$" . "" -}}
{{- end -}}

{{- define "model-sidecar.isLoopback" -}}
{{- if or (hasPrefix "unix:" .) (regexMatch "^(127\\.[0-9.]+|localhost|\\[::1\\])$" (include "model-sidecar.host" .)) -}}true{{- end -}}
{{- end -}}

{{/* Listeners that the pod needs, that kubelet asks, and that nobody else may reach. */}}
{{- define "model-sidecar.checks.addresses" -}}
{{- $config := include "model-sidecar.config" . | fromYaml -}}
{{- $gateway := $config.gateway -}}
{{- $http := default dict $gateway.http -}}
{{- $outward := dict "gateway.grpc.address" $gateway.grpc.address "gateway.health" $gateway.health "gateway.hooks" $gateway.hooks -}}
{{- if $gateway.http }}{{ $_ := set $outward "gateway.http.address" $http.address }}{{ end -}}
{{- if .Values.monitor.enabled -}}
{{- $_ := set $outward "monitor.health" $config.monitor.health -}}
{{- with $config.monitor.http }}{{ $_ := set $outward "monitor.http" . }}{{ end -}}
{{- if eq (include "model-sidecar.metricsExporter" .) "prometheus" }}{{ $_ := set $outward "telemetry.prometheus" $config.telemetry.prometheus }}{{ end -}}
{{- end -}}
{{- range $path, $address := $outward }}
{{- if not $address }}
config.{{ $path }} is null, and the pod needs it (probes and preStop hooks): leave it away
{{- else if include "model-sidecar.isLoopback" $address }}
config.{{ $path }} is {{ $address }}, which nobody outside of the container reaches: leave it away, or write 0.0.0.0:PORT
{{- else if eq (include "model-sidecar.port" $address) "0" }}
config.{{ $path }} is {{ $address }}: in a pod the port must be known, write it
{{- end }}
{{- end }}
{{- if and $config.monitor.grpc (not (include "model-sidecar.isLoopback" $config.monitor.grpc)) }}
config.monitor.grpc is {{ $config.monitor.grpc }}: whoever reaches it may change routes and decisions; leave it away (127.0.0.1:9002), and use kubectl exec or port-forward
{{- end }}
{{- $admin := default dict $gateway.admin -}}
{{- if and $admin.address (not (include "model-sidecar.isLoopback" $admin.address)) (not (or $admin.token $admin.token_file)) }}
config.gateway.admin.address is {{ $admin.address }}, and there is no token: whoever reaches it may load and unload models; set config.gateway.admin.token, or leave the address away (127.0.0.1:9006)
{{- end }}
{{- end -}}

{{/* Folders that are volumes. */}}
{{- define "model-sidecar.checks.folders" -}}
{{- $config := include "model-sidecar.config" . | fromYaml -}}
{{- $folders := dict "state_dir" "/var/lib/model-sidecar" "socket" "/run/model-sidecar/" "pages" "/run/model-sidecar/" -}}
{{- range $key, $folder := $folders }}
{{- $path := toString (index $config.monitor $key) }}
{{- if not (or (eq $path $folder) (and (hasSuffix "/" $folder) (hasPrefix $folder $path))) }}
config.monitor.{{ $key }} is {{ $path }}, where no volume is that both containers mount: leave it away ({{ $folder }})
{{- end }}
{{- end }}
{{- end -}}

{{/* All containers of a pod share its ports. */}}
{{- define "model-sidecar.checks.ports" -}}
{{- $config := include "model-sidecar.config" . | fromYaml -}}
{{- $taken := dict -}}
{{- $claims := list -}}
{{- range $name, $port := include "model-sidecar.ports" . | fromYaml -}}
{{- $claims = append $claims (dict "who" (printf "the sidecar's %s" $name) "port" $port) -}}
{{- end -}}
{{- range $path, $address := dict "gateway.admin.address" (default dict $config.gateway.admin).address "monitor.grpc" $config.monitor.grpc -}}
{{- if and $address (include "model-sidecar.isLoopback" $address) -}}
{{- with include "model-sidecar.port" $address -}}
{{- $claims = append $claims (dict "who" (printf "config.%s" $path) "port" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $container := concat (list .Values.model) .Values.extraContainers -}}
{{- range $container.ports -}}
{{- $claims = append $claims (dict "who" (printf "the container %s" $container.name) "port" .containerPort) -}}
{{- end -}}
{{- end -}}
{{- range $claims -}}
{{- $port := toString (int .port) -}}
{{- if and (ne $port "0") (hasKey $taken $port) }}
port {{ $port }} is taken twice in the pod, by {{ index $taken $port }} and by {{ .who }}: give one of them another (the sidecar's are config.gateway.grpc.address, config.gateway.http.address, …, as 0.0.0.0:PORT)
{{- end }}
{{- $_ := set $taken $port .who -}}
{{- end -}}
{{- end -}}

{{- define "model-sidecar.checks.monitor" -}}
{{- $monitor := default dict .Values.config.monitor -}}
{{- if and (kindIs "bool" $monitor.enabled) (ne $monitor.enabled .Values.monitor.enabled) }}
config.monitor.enabled is {{ $monitor.enabled }}, and monitor.enabled {{ .Values.monitor.enabled }}: set the latter alone, it makes the container
{{- end }}
{{- if not .Values.monitor.enabled }}
{{- $needs := dict "monitor.http.enabled" .Values.monitor.http.enabled "store.postgresql.existingSecret" .Values.store.postgresql.existingSecret "metrics.serviceMonitor.enabled" .Values.metrics.serviceMonitor.enabled "metrics.podMonitor.enabled" .Values.metrics.podMonitor.enabled "config.monitor.http" $monitor.http "config.monitor.store" $monitor.store }}
{{- range $path, $value := $needs }}
{{- if $value }}
{{ $path }} is set, and monitor.enabled is false: it is the monitor that does this; turn it on, or leave the other away
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "model-sidecar.checks.tls" -}}
{{- $gateway := default dict .Values.config.gateway -}}
{{- range $listener := list "grpc" "http" -}}
{{- if and $.Values.tls.secretName (default dict (index $gateway $listener)).tls }}
config.gateway.{{ $listener }}.tls is set, and tls.secretName too: leave one away
{{- end }}
{{- end }}
{{- if and .Values.tls.clientCa (not .Values.tls.secretName) }}
tls.clientCa is a key of the Secret tls.secretName, which is empty: name the Secret
{{- end }}
{{- end -}}

{{/* How many replicas there may be: `1`, or `several`. */}}
{{- define "model-sidecar.replicas" -}}
{{- if or .Values.autoscaling.enabled (gt (int .Values.replicas) 1) -}}several{{- else -}}1{{- end -}}
{{- end -}}

{{/* Whether PostgreSQL is the store: `true` or nothing. */}}
{{- define "model-sidecar.isFleet" -}}
{{- if or .Values.store.postgresql.existingSecret (default dict .Values.config.monitor).store -}}true{{- end -}}
{{- end -}}

{{/* Evidence must outlive what is done because of it. */}}
{{- define "model-sidecar.checks.store" -}}
{{- $store := default dict (default dict .Values.config.monitor).store -}}
{{- if and $store.url .Values.store.postgresql.existingSecret }}
config.monitor.store.url is set, and store.postgresql.existingSecret too: leave one away
{{- end }}
{{- if and $store (not $store.url) (not .Values.store.postgresql.existingSecret) }}
config.monitor.store is set without a url: name the Secret that holds it in store.postgresql.existingSecret
{{- end }}
{{- if not (include "model-sidecar.isFleet" .) }}
{{- if and (eq (include "model-sidecar.replicas" .) "several") (include "model-sidecar.judges" .) }}
{{ ternary "autoscaling.enabled is true" (printf "replicas is %d" (int .Values.replicas)) .Values.autoscaling.enabled }}, and each pod would judge by its own part of the evidence: let them share it in PostgreSQL (store.postgresql.existingSecret), or run one replica
{{- end }}
{{- if not .Values.store.persistence.enabled }}
{{- range (include "model-sidecar.clusterActions" . | fromYaml).actions }}
the action {{ .kind }} ({{ .namespace }}/{{ .name }}) replaces pods, and the evidence for it lies in an emptyDir that goes with them: set store.postgresql.existingSecret, or for one replica store.persistence.enabled
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* One claim, one pod. */}}
{{- define "model-sidecar.checks.claim" -}}
{{- if .Values.store.persistence.enabled }}
{{- if eq (include "model-sidecar.replicas" .) "several" }}
store.persistence.enabled is true with more than one replica, and two pods cannot share a state folder: share evidence in PostgreSQL instead (store.postgresql.existingSecret, store.persistence.enabled: false), or run one replica without autoscaling
{{- end }}
{{- $rolling := default dict .Values.strategy.rollingUpdate }}
{{- if and .Values.strategy (ne (default "RollingUpdate" .Values.strategy.type) "Recreate") (ne (toString $rolling.maxSurge) "0") }}
strategy starts a new pod beside the old one, and the claim of store.persistence belongs to one: leave strategy away (Recreate), or set strategy.rollingUpdate.maxSurge: 0
{{- end }}
{{- else if .Values.store.persistence.existingClaim }}
store.persistence.existingClaim is {{ .Values.store.persistence.existingClaim }}, and store.persistence.enabled is false: turn it on
{{- end }}
{{- end -}}

{{/* Requests in flight end before anything is cut. */}}
{{- define "model-sidecar.checks.stopping" -}}
{{- $drain := include "model-sidecar.drain" . | fromYaml -}}
{{- $connections := addf $drain.delay_s $drain.max_connection_age_s -}}
{{- if gt $connections (float64 $drain.timeout_s) }}
config.gateway.drain.timeout_s is {{ $drain.timeout_s }}, shorter than drain.delay_s ({{ $drain.delay_s }}) and grpc.max_connection_age_s ({{ $drain.max_connection_age_s }}) together: connections would be cut with requests in flight; make it at least {{ $connections }}, or the others shorter
{{- end }}
{{- if not (kindIs "invalid" .Values.terminationGracePeriodSeconds) }}
{{- $needed := include "model-sidecar.stopSeconds" (dict "root" . "margin" 0) | int }}
{{- if lt (int .Values.terminationGracePeriodSeconds) $needed }}
terminationGracePeriodSeconds is {{ .Values.terminationGracePeriodSeconds }}, and stopping may take {{ $needed }} (config.gateway.drain.timeout_s {{ $drain.timeout_s }}, 8 for the monitor{{ if .Values.model.image }}, model.stopSeconds {{ .Values.model.stopSeconds }}{{ end }}): leave it away, or shorten the drain
{{- end }}
{{- end }}
{{- end -}}

{{/* Where models' files come from, and whether the configuration looks there. */}}
{{- define "model-sidecar.checks.models" -}}
{{- $source := .Values.models.source -}}
{{- $needed := dict "pvc" "claimName" "image" "reference" "init" "image" "hostPath" "path" -}}
{{- if ne $source "none" -}}
{{- $key := index $needed $source -}}
{{- if not (index .Values.models $source $key) }}
models.source is {{ $source }}, and models.{{ $source }}.{{ $key }} is empty: it is needed
{{- end }}
{{- end }}
{{- if and (eq $source "image") (semverCompare "<1.31-0" .Capabilities.KubeVersion.Version) }}
models.source is image, and image volumes need Kubernetes 1.31 (with the feature gate ImageVolume), not {{ .Capabilities.KubeVersion.Version }}: take models.source pvc or init
{{- end }}
{{- if and (eq $source "image") .Values.models.image.subPath (semverCompare "<1.33-0" .Capabilities.KubeVersion.Version) }}
models.image.subPath is set, and a part of an image volume can be mounted from Kubernetes 1.33 on, not in {{ .Capabilities.KubeVersion.Version }}: leave it away, and write the folder into the paths of config
{{- end }}
{{- range $i, $model := .Values.config.models -}}
{{- range $k, $variant := $model.variants -}}
{{- $path := default dict $variant.runtime | dig "path" "" -}}
{{- if and $path (not (hasPrefix "/" $path)) }}
config.models[{{ $i }}].variants[{{ $k }}].runtime.path is {{ $path }}, which in the pod is relative to /etc/model-sidecar, where the configuration lies: write {{ $.Values.models.mountPath }}/{{ base $path }}
{{- else if and $path (ne $source "none") (not (hasPrefix (printf "%s/" (trimSuffix "/" $.Values.models.mountPath)) $path)) (not $.Values.gateway.volumeMounts) }}
config.models[{{ $i }}].variants[{{ $k }}].runtime.path is {{ $path }}, outside of models.mountPath ({{ $.Values.models.mountPath }}): move it there
{{- end }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A server behind a loopback address stands in this pod. */}}
{{- define "model-sidecar.checks.remotes" -}}
{{- if and .Values.deployment.enabled (not (or .Values.model.image .Values.extraContainers .Values.extraInitContainers)) -}}
{{- range $i, $model := .Values.config.models -}}
{{- range $k, $variant := $model.variants -}}
{{- $address := default dict $variant.runtime | dig "address" "" -}}
{{- if and $address (include "model-sidecar.isLoopback" $address) }}
config.models[{{ $i }}].variants[{{ $k }}].runtime.address is {{ $address }}, and the pod has no container that could listen there: set model.image, or the address of the server
{{- end }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "model-sidecar.checks.pod" -}}
{{- if and (eq .Values.sidecar.form "native") (semverCompare "<1.29-0" .Capabilities.KubeVersion.Version) }}
sidecar.form is native, which needs Kubernetes 1.29, not {{ .Capabilities.KubeVersion.Version }}: write auto
{{- end }}
{{- if and .Values.gpu.count .Values.deployment.enabled (eq (include "model-sidecar.gpuContainer" .) "model") (not .Values.model.image) }}
gpu.container is model, and there is no model container: set model.image, or gpu.container: gateway
{{- end }}
{{- if and .Values.gpu.count (eq .Values.gpu.container "monitor") (not .Values.monitor.enabled) }}
gpu.container is monitor, and monitor.enabled is false: leave one away
{{- end }}
{{- if and .Values.gpu.monitorCount (eq .Values.gpu.container "monitor") }}
gpu.monitorCount is {{ .Values.gpu.monitorCount }}, and gpu.container is monitor: say it once
{{- end }}
{{- if and .Values.service.headless (ne .Values.service.type "ClusterIP") }}
service.headless is true with service.type {{ .Values.service.type }}: a headless Service has the type ClusterIP
{{- end }}
{{- end -}}

{{/* An autoscaler without a metric goes by 80 % of all containers together; one about a container that is not there does nothing. */}}
{{- define "model-sidecar.checks.scaling" -}}
{{- $scale := .Values.autoscaling -}}
{{- if $scale.enabled }}
{{- if not (or $scale.cpu.enabled $scale.queue.enabled $scale.metrics) }}
autoscaling.enabled is true, and there is nothing to go by: turn autoscaling.cpu.enabled or autoscaling.queue.enabled on, or list autoscaling.metrics
{{- end }}
{{- if lt (int $scale.maxReplicas) (int $scale.minReplicas) }}
autoscaling.maxReplicas is {{ $scale.maxReplicas }}, and autoscaling.minReplicas {{ $scale.minReplicas }}: the most is less than the least
{{- end }}
{{- $names := list "gateway" "monitor" .Values.model.name -}}
{{- range concat .Values.extraContainers .Values.extraInitContainers }}{{ $names = append $names .name }}{{ end -}}
{{- if and $scale.cpu.enabled (not (has $scale.cpu.container $names)) }}
autoscaling.cpu.container: no container is called {{ $scale.cpu.container }}; there is {{ join ", " $names }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "model-sidecar.checks.metrics" -}}
{{- $exporter := include "model-sidecar.metricsExporter" . -}}
{{- if and .Values.monitor.enabled (ne $exporter "prometheus") -}}
{{- range $key := list "serviceMonitor" "podMonitor" -}}
{{- if (index $.Values.metrics $key).enabled }}
metrics.{{ $key }}.enabled is true, and there is nothing to scrape ({{ if $exporter }}config.telemetry sends metrics by {{ $exporter }}{{ else }}metrics.enabled is false{{ end }}): set config.telemetry.metrics.exporter: prometheus
{{- end }}
{{- end -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled }}
metrics.serviceMonitor.enabled and metrics.podMonitor.enabled are true, and each series would come twice: leave one away
{{- end }}
{{- end -}}

{{/* A ConfigMap is no place for a secret. */}}
{{- define "model-sidecar.checks.secrets" -}}
{{- range (include "model-sidecar.secretValues" . | fromYaml).found }}
{{- if and (kindIs "string" .value) (not (regexMatch "^\\$\\{[A-Za-z_][A-Za-z0-9_]*\\}$" .value)) }}
config.{{ .path }} holds the secret itself, which everybody would see who may read the ConfigMap: put it into a Secret, name that under secrets (`MY_NAME: {name: the-secret, key: its-key}`), and write ${MY_NAME} here
{{- end }}
{{- end }}
{{- include "model-sidecar.checks.credentials" (dict "path" "config" "value" .Values.config) }}
{{- if hasKey .Values.secrets "MODEL_SIDECAR_STORE_URL" }}
secrets.MODEL_SIDECAR_STORE_URL is the chart's own name: use store.postgresql.existingSecret, or another name
{{- end }}
{{- end -}}

{{/* URLs with a password, anywhere in the configuration. */}}
{{- define "model-sidecar.checks.credentials" -}}
{{- $path := .path -}}
{{- if kindIs "map" .value -}}
{{- range $key, $value := .value -}}
{{- include "model-sidecar.checks.credentials" (dict "path" (printf "%s.%s" $path $key) "value" $value) -}}
{{- end -}}
{{- else if kindIs "slice" .value -}}
{{- range $index, $value := .value -}}
{{- include "model-sidecar.checks.credentials" (dict "path" (printf "%s[%d]" $path $index) "value" $value) -}}
{{- end -}}
{{- else if and (kindIs "string" .value) (regexMatch "^[a-z0-9+.-]+://[^/@\\s]*:[^/@\\s]+@" .value) }}
{{ $path }} is a URL with a password in it, which everybody would see who may read the ConfigMap: give the credentials in a secret header or variable
{{- end -}}
{{- end -}}

{{/* Every secret of the configuration that is said, as YAML: `found: [{path, value}]`. */}}
{{- define "model-sidecar.secretValues" -}}
{{- $config := .Values.config -}}
{{- $found := list -}}
{{- $headers := dict -}}
{{- with (default dict (default dict $config.gateway).admin).token }}{{ $found = append $found (dict "path" "gateway.admin.token" "value" .) }}{{ end -}}
{{- with (default dict (default dict $config.monitor).store).url }}{{ $found = append $found (dict "path" "monitor.store.url" "value" .) }}{{ end -}}
{{- $telemetry := default dict $config.telemetry -}}
{{- $_ := set $headers "telemetry" $telemetry -}}
{{- range $signal := list "traces" "metrics" "logs" -}}
{{- $_ := set $headers (printf "telemetry.%s" $signal) (default dict (index $telemetry $signal)) -}}
{{- end -}}
{{- range $i, $channel := (default dict $config.alerts).channels -}}
{{- $path := printf "alerts.channels[%d]" $i -}}
{{- $_ := set $headers $path $channel -}}
{{- range $key := list "routing_key" "password" "url" -}}
{{- if and (index $channel $key) (or (ne $key "url") (has $channel.kind (list "slack" "apprise"))) -}}
{{- $found = append $found (dict "path" (printf "%s.%s" $path $key) "value" (index $channel $key)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $i, $model := $config.models -}}
{{- $_ := set $headers (printf "models[%d].rollback.action" $i) (default dict (default dict $model.rollback).action) -}}
{{- end -}}
{{- range $path, $holder := $headers -}}
{{- range $name, $value := $holder.headers -}}
{{- $found = append $found (dict "path" (printf "%s.headers.%s" $path $name) "value" $value) -}}
{{- end -}}
{{- end -}}
{{- toYaml (dict "found" $found) -}}
{{- end -}}

{{/* Variables that the configuration names, and nobody gives. */}}
{{- define "model-sidecar.checks.variables" -}}
{{- $said := list "MODEL_SIDECAR_STORE_URL" -}}
{{- range $name, $_ := .Values.secrets }}{{ $said = append $said $name }}{{ end -}}
{{- range $container := list "gateway" "monitor" -}}
{{- $values := index $.Values $container -}}
{{- $given := $said -}}
{{- range $values.env }}{{ $given = append $given .name }}{{ end -}}
{{- $part := ternary (default dict $.Values.config.gateway) $.Values.config (eq $container "gateway") -}}
{{- if and (not $values.envFrom) (or (eq $container "gateway") $.Values.monitor.enabled) -}}
{{- range regexFindAll "\\$\\{[A-Za-z_][A-Za-z0-9_]*\\}" (toYaml $part) -1 | uniq -}}
{{- $name := trimAll "${}" . -}}
{{- if not (has $name $given) }}
config names the variable {{ $name }}, which the container {{ $container }} is not given: name its Secret under secrets (`{{ $name }}: {name: the-secret, key: its-key}`)
{{- end }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
