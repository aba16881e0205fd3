{{/* Name of everything that belongs to the operator. One operator serves a cluster, so there is one name. */}}
{{- define "pinhole.operator" -}}
pinhole-operator
{{- end }}

{{- define "pinhole.selector" -}}
app.kubernetes.io/name: pinhole-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pinhole.labels" -}}
{{ include "pinhole.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: pinhole
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Reference of an image: a digest wins over a tag, the chart's appVersion is the default tag.
     Call with (dict "image" .Values.x.image "chart" .Chart). */}}
{{- define "pinhole.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .chart.AppVersion }}
{{- end }}
{{- end }}

{{/* The version in which this cluster serves MutatingAdmissionPolicy, or nothing. */}}
{{- define "pinhole.mutatingAdmissionPolicyVersion" -}}
{{- range (list "v1" "v1beta1") -}}
{{- $version := printf "admissionregistration.k8s.io/%s" . -}}
{{- if $.Capabilities.APIVersions.Has (printf "%s/MutatingAdmissionPolicy" $version) -}}
{{ $version }},
{{- end }}
{{- end }}
{{- end }}

{{/* The version of MutatingAdmissionPolicy to install, or nothing where sidecars are off or cannot be. */}}
{{- define "pinhole.sidecarPolicyVersion" -}}
{{- $served := include "pinhole.mutatingAdmissionPolicyVersion" . | splitList "," | first -}}
{{- $wanted := toString .Values.sidecars.enabled -}}
{{- if eq $wanted "true" -}}
{{ $served | default "admissionregistration.k8s.io/v1" }}
{{- else if eq $wanted "auto" -}}
{{ $served }}
{{- end }}
{{- end }}
