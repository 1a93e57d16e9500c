{{- define "kairos.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 57 | trimSuffix "-" -}}
{{- else if contains "kairos" .Release.Name -}}
{{- .Release.Name | trunc 57 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-kairos" .Release.Name | trunc 57 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "kairos.selector" -}}
app.kubernetes.io/name: kairos
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "kairos.labels" -}}
{{ include "kairos.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "kairos.serviceAccount" -}}
{{- if .Values.serviceAccount.name -}}
{{- .Values.serviceAccount.name -}}
{{- else if .Values.serviceAccount.create -}}
{{- include "kairos.name" . -}}
{{- else -}}
default
{{- end -}}
{{- end }}

{{- define "kairos.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- $suffix := ternary "-gpu" "" (gt (int .Values.gpu.count) 0) -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default (printf "%s%s" .Chart.AppVersion $suffix)) -}}
{{- end -}}
{{- end }}

{{- /* One probe: kubelet's own, or with TLS, which that does not speak, the health command. */ -}}
{{- define "kairos.probe" -}}
{{- $values := .root.Values -}}
{{- if $values.tls.secretName -}}
exec:
  command:
    - kairos
    - health
    - --url=127.0.0.1:{{ $values.service.grpcPort }}
    - --timeout={{ $values.probes.timeoutSeconds }}
    - --root-cert=/etc/kairos/probe/ca.crt
    - --authority={{ $values.tls.authority }}
    {{- if $values.tls.mutual }}
    - --client-cert=/etc/kairos/probe/tls.crt
    - --client-key=/etc/kairos/probe/tls.key
    {{- end }}
    {{- with .service }}
    - --service={{ . }}
    {{- end }}
{{- else -}}
grpc:
  port: {{ $values.service.grpcPort }}
  {{- with .service }}
  service: {{ . }}
  {{- end }}
{{- end }}
timeoutSeconds: {{ $values.probes.timeoutSeconds }}
{{- end }}

{{- define "kairos.volume" -}}
{{- if .existingClaim -}}
persistentVolumeClaim:
  claimName: {{ .existingClaim }}
{{- else -}}
emptyDir:
  sizeLimit: {{ .sizeLimit }}
{{- end -}}
{{- end }}
