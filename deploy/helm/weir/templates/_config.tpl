{{/*
The daemons' configuration: what the user gave, checked against the release, with the keys that
follow from other values. The result passes `weir check-config`.
*/}}

{{- define "weir.config" -}}
{{- include "weir.checks" . -}}
{{- $server := dict
  "grpc_listen" (printf "%s:%d" .Values.listenAddress (int .Values.ports.grpc))
  "http_listen" (printf "%s:%d" .Values.listenAddress (int .Values.ports.http))
  "state_dir" "/var/lib/weir" -}}
{{- $agent := dict
  "http_listen" (printf "%s:%d" .Values.listenAddress (int .Values.ports.agent))
  "state_dir" "/var/lib/weir" -}}
{{- $own := dict "cluster" (dict "region" .Values.region) "server" $server "agent" $agent -}}
{{- if ne .Values.tls.mode "none" -}}
{{- $_ := set $own "tls" (dict "ca_file" "/etc/weir-tls/ca.crt" "cert_file" "/etc/weir-tls/tls.crt" "key_file" "/etc/weir-tls/tls.key") -}}
{{- end -}}
{{- if .Values.passwords.etcd.existingSecret -}}
{{- $_ := set $own "coordination" (dict "password_file" "/etc/weir-etcd/password") -}}
{{- end -}}
{{- if .Values.passwords.redis.existingSecret -}}
{{- $_ := set $own "locks" (dict "password_file" "/etc/weir-redis/password") -}}
{{- end -}}
{{- mergeOverwrite (deepCopy .Values.config) $own | toYaml -}}
{{- end -}}

{{/* What the schema cannot say. Each message names the value and the remedy. */}}
{{- define "weir.checks" -}}
{{- $config := .Values.config -}}
{{- if not (hasKey $config.regions .Values.region) -}}
{{- fail (printf "region: %q is not among config.regions (%s)" .Values.region (keys $config.regions | sortAlpha | join ", ")) -}}
{{- end -}}
{{- include "weir.checkOwned" . -}}
{{- include "weir.checkReplicas" . -}}
{{- include "weir.checkTls" . -}}
{{- if or .Values.gateway.enabled .Values.sidecar.xds -}}
{{- range $name, $region := $config.regions -}}
{{- if not $region.endpoints -}}
{{- fail (printf "config.regions.%s.endpoints: gateways and sidecar.xds need the addresses of every region" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $ports := list (int .Values.ports.grpc) (int .Values.ports.http) (int .Values.ports.agent) -}}
{{- if lt (len (uniq $ports)) 3 -}}
{{- fail "ports: grpc, http and agent must differ" -}}
{{- end -}}
{{- end -}}

{{- define "weir.checkOwned" -}}
{{- $owned := dict
  "cluster.id" "it is the pod's name"
  "cluster.region" "use region"
  "server.grpc_listen" "use listenAddress and ports.grpc"
  "server.http_listen" "use listenAddress and ports.http"
  "server.state_dir" "it is the state volume"
  "agent.http_listen" "use listenAddress and ports.agent"
  "agent.state_dir" "it is the state volume"
  "agent.xds_dir" "use sidecar.xds or gateway.enabled"
  "agent.xds_listener" "use sidecar.xdsListener or gateway.ports.listener"
  "agent.grpc_listen" "use sidecar.planListener"
  "tls.ca_file" "use tls.existingSecret"
  "tls.cert_file" "use tls.existingSecret"
  "tls.key_file" "use tls.existingSecret"
  "coordination.password_file" "use passwords.etcd"
  "locks.password_file" "use passwords.redis" -}}
{{- range $path, $remedy := $owned -}}
{{- $parts := splitList "." $path -}}
{{- $section := default dict (get $.Values.config (first $parts)) -}}
{{- if hasKey $section (last $parts) -}}
{{- fail (printf "config.%s: written by the chart; %s" $path $remedy) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Peers know each other by the ids in the configuration, and a pod's id is its name. */}}
{{- define "weir.checkReplicas" -}}
{{- $root := . -}}
{{- $want := list -}}
{{- range $i := until (int .Values.controlPlane.replicas) -}}
{{- $want = append $want (printf "%s-%d" (include "weir.fullname" $root) $i) -}}
{{- end -}}
{{- $have := list -}}
{{- range (get .Values.config.regions .Values.region).replicas -}}
{{- $have = append $have .id -}}
{{- end -}}
{{- if ne (join "," ($want | sortAlpha)) (join "," ($have | sortAlpha)) -}}
{{- fail (printf "config.regions.%s.replicas: has ids [%s], but this release's pods are [%s]; change the list, controlPlane.replicas or fullnameOverride" .Values.region ($have | sortAlpha | join ", ") (join ", " $want)) -}}
{{- end -}}
{{- end -}}

{{- define "weir.checkTls" -}}
{{- $tls := .Values.tls -}}
{{- $server := default dict .Values.config.server -}}
{{- if and (eq $tls.mode "none") (not $server.allow_plaintext) -}}
{{- fail "tls.mode: none sends everything in the clear; it needs config.server.allow_plaintext: true" -}}
{{- end -}}
{{- if and (eq $tls.mode "existingSecret") (not $tls.existingSecret) -}}
{{- fail "tls.existingSecret: name a Secret with ca.crt, tls.crt and tls.key, or set tls.mode to certManager or none" -}}
{{- end -}}
{{- if and (eq $tls.mode "existingSecret") (not $tls.agentExistingSecret) -}}
{{- fail "tls.agentExistingSecret: agents need a certificate of their own, whose URI names the role agent" -}}
{{- end -}}
{{- if eq $tls.mode "certManager" -}}
{{- if not $tls.certManager.issuerRef.name -}}
{{- fail "tls.certManager.issuerRef.name: name the issuer" -}}
{{- end -}}
{{- if and (eq $tls.certManager.issuerRef.kind "Issuer") (without .Values.sidecar.namespaces .Release.Namespace) -}}
{{- fail "tls.certManager.issuerRef.kind: an Issuer serves one namespace only; sidecar.namespaces needs a ClusterIssuer" -}}
{{- end -}}
{{- end -}}
{{- end -}}
