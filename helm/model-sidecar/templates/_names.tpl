{{/* Names and labels of everything that is made. */}}

{{/* The chart's name, or `nameOverride`. */}}
{{- define "model-sidecar.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of this release's objects. */}}
{{- define "model-sidecar.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "model-sidecar.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "model-sidecar.labels" -}}
{{- $own := include "model-sidecar.selectorLabels" . | fromYaml -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") -}}
{{- $_ := set $own "app.kubernetes.io/version" .Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .Release.Service -}}
{{- toYaml (merge $own .Values.commonLabels) -}}
{{- end -}}

{{/* Labels by which pods are found. They never change: a Deployment's selector cannot. */}}
{{- define "model-sidecar.selectorLabels" -}}
app.kubernetes.io/name: {{ include "model-sidecar.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of the pod. Without the chart's version: pods are not rolled because of it. */}}
{{- define "model-sidecar.podLabels" -}}
{{- $own := include "model-sidecar.selectorLabels" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/version" .Chart.AppVersion -}}
{{- toYaml (merge $own .Values.podLabels .Values.commonLabels) -}}
{{- end -}}

{{/* `metadata` of an object: call it with (dict "root" . "suffix" "-pdb" "labels" (dict) "annotations" (dict)); all but root may be left away. */}}
{{- define "model-sidecar.metadata" -}}
{{- $root := .root -}}
name: {{ include "model-sidecar.suffixed" (dict "root" $root "suffix" (default "" .suffix)) }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- toYaml (merge (include "model-sidecar.labels" $root | fromYaml) (default dict .labels)) | nindent 2 }}
{{- with merge (dict) (default dict .annotations) $root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The release's name with a suffix, no longer than a name may be. */}}
{{- define "model-sidecar.suffixed" -}}
{{- $name := include "model-sidecar.fullname" .root -}}
{{- printf "%s%s" ($name | trunc (int (sub 63 (len .suffix))) | trimSuffix "-") .suffix -}}
{{- end -}}

{{/* The account that the pod runs as. */}}
{{- define "model-sidecar.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "model-sidecar.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The sidecar's image. */}}
{{- define "model-sidecar.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- $suffix := ternary "" (printf "-%s" $image.variant) (eq $image.variant "base") -}}
{{- printf "%s:%s%s" $image.repository (default .Chart.AppVersion $image.tag) $suffix -}}
{{- end -}}
{{- end -}}

{{/* The ConfigMap that holds the configuration. */}}
{{- define "model-sidecar.configMapName" -}}
{{- default (include "model-sidecar.fullname" .) .Values.configMap.existing -}}
{{- end -}}

{{/* The claim of the state folder. */}}
{{- define "model-sidecar.claimName" -}}
{{- default (include "model-sidecar.suffixed" (dict "root" . "suffix" "-state")) .Values.store.persistence.existingClaim -}}
{{- end -}}
