"""The gRPC server and its process."""

from __future__ import annotations

from panels import Dashboard, Panel, Query

from boards.expressions import SERVER, quantile, rate

PROCESS = Dashboard(
    "kairos-process",
    "Kairos / Transport and process",
    "Connections, bytes and faults of the gRPC server, and what the process costs.",
    (
        (
            "Transport",
            (
                Panel(
                    title="Connections and streams", unit="short", warn=10000,
                    description="Open connections, and open HTTP/2 streams on all of them.",
                    queries=(
                        Query(f"kairos_connections{{{SERVER}}}", "{{instance}} connections"),
                        Query(f"kairos_streams{{{SERVER}}}", "{{instance}} streams"),
                    ),
                ),
                Panel(
                    title="Calls", unit="reqps",
                    description="Calls of all methods a second, and how many of them their deadline ended.",
                    queries=(
                        Query(rate("kairos_calls_started_total", "instance", SERVER), "{{instance}} started"),
                        Query(rate("kairos_calls_expired_total", "instance", SERVER), "{{instance}} expired"),
                    ),
                ),
                Panel(
                    title="Bytes", unit="Bps",
                    description="Bytes a second from and to all sockets, above TLS.",
                    queries=(
                        Query(rate("kairos_received_bytes_total", "instance", SERVER), "{{instance}} in"),
                        Query(rate("kairos_sent_bytes_total", "instance", SERVER), "{{instance}} out"),
                    ),
                ),
                Panel(
                    title="Bytes held back", unit="bytes", warn=64 << 20, alarm=512 << 20,
                    description="Replies that clients leave no window for, and requests that wait for their handlers.",
                    queries=(
                        Query(f"kairos_transport_queued_bytes{{{SERVER}}}", "{{instance}} replies"),
                        Query(f"kairos_transport_buffered_bytes{{{SERVER}}}", "{{instance}} requests"),
                    ),
                ),
                Panel(
                    title="Stream resets", unit="ops", warn=10, alarm=1000,
                    description="Streams that ended by RST_STREAM, by code. CANCEL is a caller who left.",
                    queries=(Query(rate("kairos_stream_resets_total", "code", SERVER), "{{code}}"),),
                ),
                Panel(
                    title="Connection errors", unit="ops", warn=0.1, alarm=1.0,
                    description="Connections that the server ended for an error of the peer, by code.",
                    queries=(Query(rate("kairos_connection_errors_total", "code", SERVER), "{{code}}"),),
                ),
            ),
        ),
        (
            "Process",
            (
                Panel(
                    title="CPU", unit="short", warn=1.0,
                    description="Cores that the process uses, engines included.",
                    queries=(Query(rate("process_cpu_seconds_total", "instance", SERVER), "{{instance}}"),),
                ),
                Panel(
                    title="CPU a call", unit="s", warn=0.001, alarm=0.01,
                    description="CPU seconds of the process, engines included, for each call of any method.",
                    queries=(
                        Query(
                            f"{rate('process_cpu_seconds_total', 'instance', SERVER)}"
                            f" / {rate('kairos_calls_started_total', 'instance', SERVER)}",
                            "{{instance}}",
                        ),
                    ),
                ),
                Panel(
                    title="Event-loop lag", unit="s", warn=0.01, alarm=0.05,
                    description="How late the event loop runs what is due. Lag delays every request of the process.",
                    queries=(
                        Query(quantile(0.5, "kairos_event_loop_lag_seconds", "instance", SERVER), "{{instance}} p50"),
                        Query(quantile(0.99, "kairos_event_loop_lag_seconds", "instance", SERVER), "{{instance}} p99"),
                    ),
                ),
                Panel(
                    title="Resident memory", unit="bytes", warn=4 << 30, alarm=16 << 30,
                    description="Memory of the process, models included.",
                    queries=(Query(f"process_resident_memory_bytes{{{SERVER}}}", "{{instance}}"),),
                ),
                Panel(
                    title="File descriptors", unit="percentunit", warn=0.7, alarm=0.9, most=1,
                    description="Share of the allowed file descriptors in use; each connection takes one.",
                    queries=(
                        Query(f"process_open_fds{{{SERVER}}} / process_max_fds{{{SERVER}}}", "{{instance}}"),
                    ),
                ),
                Panel(
                    title="Garbage collections", unit="ops", warn=10, alarm=100,
                    description="Collections of the interpreter's oldest generation stop it for milliseconds.",
                    queries=(
                        Query(
                            f"sum by (generation) (rate(python_gc_collections_total{{{SERVER}}}[$__rate_interval]))",
                            "generation {{generation}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)  # fmt: skip
