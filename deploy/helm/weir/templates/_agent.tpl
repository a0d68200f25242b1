{{/*
The agent's container, the same in the agents' own Deployment, in gateways and in your pods.

Beside another container it has no readiness probe: a pod is ready when all its containers are, so
a control plane that cannot be reached would take the data plane out of service. Its startup probe
asks /livez for the same reason: a native sidecar holds back the pod's own containers until it
has started, and they must start in an outage of the control plane too. The gateway is the
exception: its Envoy is of no use before the agent has a plan, so there it asks /readyz.
*/}}

{{/* Takes (dict "root" $ "name" n "native" bool "sidecar" bool "xds" listener or "" "startPath" p "planListener" a or "" "resources" r "extraEnv" e). */}}
{{- define "weir.agentContainer" -}}
- name: {{ .name }}
  image: {{ include "weir.image" (dict "image" .root.Values.image "default" .root.Chart.AppVersion) }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  {{- if .native }}
  restartPolicy: Always
  {{- end }}
  command: [weir]
  args: [agent, --config, /etc/weir/weir.yaml]
  env:
    - name: WEIR_CLUSTER__ID
      valueFrom:
        fieldRef:
          fieldPath: metadata.name
    {{- if .xds }}
    - name: WEIR_AGENT__XDS_DIR
      value: /run/weir/xds
    - name: WEIR_AGENT__XDS_LISTENER
      value: {{ .xds | quote }}
    {{- end }}
    {{- with .planListener }}
    - name: WEIR_AGENT__GRPC_LISTEN
      value: {{ . | quote }}
    {{- end }}
    {{- with .extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - name: weir-http
      containerPort: {{ .root.Values.ports.agent }}
  startupProbe:
    httpGet: {path: {{ .startPath }}, port: weir-http}
    periodSeconds: 1
    failureThreshold: 300
  livenessProbe:
    httpGet: {path: /livez, port: weir-http}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  {{- if not .sidecar }}
  readinessProbe:
    httpGet: {path: /readyz, port: weir-http}
    periodSeconds: 5
    timeoutSeconds: 2
  {{- end }}
  {{- with .resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "weir.containerSecurity" .root | nindent 4 }}
  volumeMounts:
    - {name: weir-config, mountPath: /etc/weir, readOnly: true}
    {{- if ne .root.Values.tls.mode "none" }}
    - {name: weir-tls, mountPath: /etc/weir-tls, readOnly: true}
    {{- end }}
    - {name: weir-state, mountPath: /var/lib/weir}
    {{- if .xds }}
    - {name: weir-xds, mountPath: /run/weir/xds}
    {{- end }}
{{- end -}}

{{/* Takes (dict "root" $ "xds" bool). */}}
{{- define "weir.agentVolumes" -}}
- name: weir-config
  configMap:
    name: {{ include "weir.fullname" .root }}
{{- if ne .root.Values.tls.mode "none" }}
- name: weir-tls
  secret:
    secretName: {{ include "weir.agentSecret" .root }}
    defaultMode: 0444 # in a foreign pod there is no fsGroup of ours; only the agent mounts it
{{- end }}
- name: weir-state
  emptyDir:
    sizeLimit: 64Mi
{{- if .xds }}
- name: weir-xds
  emptyDir:
    medium: Memory
    sizeLimit: 16Mi
{{- end }}
{{- end -}}

{{/* "true" when the sidecar is an init container that restarts always. */}}
{{- define "weir.nativeSidecar" -}}
{{- if or (eq .Values.sidecar.mode "native") (and (eq .Values.sidecar.mode "auto") (semverCompare ">=1.29.0-0" .Capabilities.KubeVersion.Version)) -}}
true
{{- end -}}
{{- end -}}
