"""The response cache in real server processes, through stock clients, RPCs and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import shared_memory

from server.pb import cache_pb2 as pb
from server.pb.cache_pb2_grpc import CacheStub
from tests.support import onnx_models
from tests.support.redis_server import RedisServer, redis_server
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import RunningServer, running_server, wait_until

pytestmark = pytest.mark.integration

CACHED = f"max_batch_size: 8\nresponse_cache {{ enable: true }}\n{ONE_ENGINE}"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    onnx_models.write(root, "scale", proto=onnx_models.scale(2.0), config=CACHED)
    onnx_models.write(root, "plain", proto=onnx_models.scale(5.0), config=f"max_batch_size: 8\n{ONE_ENGINE}")
    return root


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


def ask(server: RunningServer, number: float, model: str = "scale", **parameters: object) -> tuple[float, str]:
    """The answer, and where it came from."""
    values = np.full((1, 4), number, np.float32)
    tensor = triton.InferInput("x", values.shape, "FP32").set_data_from_numpy(values)
    with triton.InferenceServerClient(server.url) as client:
        result = client.infer(model, [tensor], parameters={"kairos_origin": True, **parameters}, client_timeout=30.0)
    return float(result.as_numpy("y")[0, 0]), result.get_response().parameters["kairos_origin"].string_param


def cli(server: RunningServer, *arguments: str) -> str:
    command = [sys.executable, "-m", "server", "cache", *arguments, "--url", server.url]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def statistics(server: RunningServer) -> pb.CacheStatisticsResponse:
    with grpc.insecure_channel(server.url) as channel:
        found: pb.CacheStatisticsResponse = CacheStub(channel).Statistics(pb.CacheStatisticsRequest(), timeout=30)  # type: ignore[no-untyped-call]
    return found


def test_one_server_by_itself(repository: Path) -> None:
    with running_server(repository) as server:
        assert [ask(server, 3.0) for _ in range(3)] == [(6.0, "engine"), (6.0, "cache"), (6.0, "cache")]
        assert ask(server, 3.0, kairos_cache_bypass=True) == (6.0, "engine")
        assert [ask(server, 3.0, "plain") for _ in range(2)] == [(15.0, "engine")] * 2

        with triton.InferenceServerClient(server.url) as client:
            (counted,) = client.get_inference_statistics("scale").model_stats
            (plain,) = client.get_inference_statistics("plain").model_stats
            result = client.infer(
                "scale", [triton.InferInput("x", (1, 4), "FP32").set_data_from_numpy(np.full((1, 4), 3.0, np.float32))]
            )
            assert "kairos_origin" not in result.get_response().parameters
        stats = counted.inference_stats
        assert (stats.cache_hit.count, stats.cache_miss.count, stats.success.count) == (2, 1, 4)
        assert stats.cache_hit.ns > 0
        assert (counted.inference_count, counted.execution_count) == (2, 2)
        assert (plain.inference_stats.cache_hit.count, plain.inference_stats.cache_miss.count) == (0, 0)

        with urllib.request.urlopen(server.metrics_url, timeout=30) as page:
            text = page.read().decode()
        assert 'kairos_cache_requests_total{model="scale",result="memory_hits",version="1"} 3.0' in text
        assert 'kairos_cache_requests_total{model="scale",result="bypassed",version="1"} 1.0' in text
        assert "kairos_cache_entries 1.0" in text
        assert 'kairos_cache_requests_total{model="plain"' not in text
        assert "kairos_redis" not in text

        found = json.loads(cli(server, "stats", "--json"))
        assert found["models"][0]["memoryHits"] == "3"
        assert "redis" not in found
        assert "75.0%" in cli(server, "stats")
        assert cli(server, "flush", "--model", "plain") == "forgotten: 0 answers in memory, 0 in Redis\n"
        assert cli(server, "flush", "--model", "scale") == "forgotten: 1 answers in memory, 0 in Redis\n"
        assert ask(server, 3.0) == (6.0, "engine")


def test_two_servers_share_hits_and_a_changed_model_misses(repository: Path, redis: RedisServer) -> None:
    flags = ("--redis-url", redis.url, "--redis-budget-ms", "200")
    polling = ("--model-control-mode", "poll", "--repository-poll-secs", "0.05")
    with running_server(repository, *flags) as one, running_server(repository, *flags, *polling) as other:
        assert ask(one, 3.0) == (6.0, "engine")
        wait_until(lambda: statistics(one).redis.written == 1, "the write")
        assert ask(other, 3.0) == (6.0, "cache")
        assert [model.redis_hits for model in statistics(other).models] == [1]

        onnx_models.write(repository, "scale", proto=onnx_models.scale(7.0))
        wait_until(lambda: ask(other, 1.0)[0] == 7.0, "the reload")
        assert ask(other, 3.0) == (21.0, "engine")
        assert ask(one, 3.0) == (6.0, "cache")  # it still serves the old file

        cli(one, "flush")
        assert redis.client.dbsize() == 0


def test_a_secret_is_read_from_a_file_or_the_environment(repository: Path, redis: RedisServer, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    flags = ("--redis-url", redis.url, "--redis-budget-ms", "200")
    with (
        running_server(repository, *flags, "--redis-secret-file", secret) as one,
        running_server(repository, *flags, env={"KAIROS_REDIS_SECRET": "correct horse"}) as same,
        running_server(repository, *flags, env={"KAIROS_REDIS_SECRET": "battery staple"}) as other,
    ):
        assert ask(one, 3.0) == (6.0, "engine")
        wait_until(lambda: statistics(one).redis.written == 1, "the write")
        assert ask(other, 3.0) == (6.0, "engine")
        assert ask(same, 3.0) == (6.0, "cache")


def test_redis_dies_and_no_request_fails(repository: Path, redis: RedisServer) -> None:
    with running_server(repository, "--redis-url", redis.url, "--response-cache-byte-size", "0") as server:
        with ThreadPoolExecutor(4) as pool:
            before = list(pool.map(lambda number: ask(server, number % 5), range(40)))
            after = pool.map(lambda number: ask(server, number % 5), range(200))
            redis.kill()
            answers = before + list(after)
        assert [answer for answer, _ in answers] == [2.0 * (number % 5) for number in [*range(40), *range(200)]]
        wait_until(lambda: ask(server, 1.0) and statistics(server).redis.lookups == pb.OPEN, "the breaker")
        assert "look-ups open" in cli(server, "stats")
        flushed = subprocess.run(
            [sys.executable, "-m", "server", "cache", "flush", "--url", server.url],
            check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert flushed.returncode == 1
        assert "Redis was not flushed: Connection" in flushed.stderr


def test_a_server_starts_without_its_redis(repository: Path) -> None:
    with running_server(repository, "--redis-url", "redis://127.0.0.1:1") as server:
        assert [ask(server, 3.0) for _ in range(2)] == [(6.0, "engine"), (6.0, "cache")]


def test_bad_settings_are_refused_with_a_reason(repository: Path) -> None:
    command = [sys.executable, "-m", "server", "serve", "--model-repository", str(repository)]
    for flags, complaint in (
        (["--redis-url", "http://somewhere"], "'http' is not a scheme"),
        (["--redis-secret", "a", "--redis-secret-file", __file__], "exclude each other"),
    ):
        ended = subprocess.run([*command, *flags], check=False, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 2
        assert complaint in " ".join(ended.stderr.replace("│", " ").split())


def test_shared_memory(repository: Path) -> None:
    """Inputs in memory that the client may still change are not cached; outputs may go to such memory."""
    with running_server(repository) as server, triton.InferenceServerClient(server.url) as client:
        region = shared_memory.create_shared_memory_region("cache", "/kairos_test_cache", 64)
        try:
            client.register_system_shared_memory("cache", "/kairos_test_cache", 64)
            given = triton.InferInput("x", (1, 4), "FP32")
            given.set_shared_memory("cache", 16)
            for number in (1.0, 1.0, 2.0):
                shared_memory.set_shared_memory_region(region, [np.full((1, 4), number, np.float32)])
                result = client.infer("scale", [given], parameters={"kairos_origin": True})
                assert result.as_numpy("y")[0, 0] == 2 * number
                assert result.get_response().parameters["kairos_origin"].string_param == "engine"
            sent = triton.InferInput("x", (1, 4), "FP32").set_data_from_numpy(np.full((1, 4), 4.0, np.float32))
            wanted = triton.InferRequestedOutput("y")
            wanted.set_shared_memory("cache", 16, offset=32)
            for origin in ("engine", "cache"):
                shared_memory.set_shared_memory_region(region, [np.zeros((1, 16), np.float32)])
                result = client.infer("scale", [sent], outputs=[wanted], parameters={"kairos_origin": True})
                assert result.get_response().parameters["kairos_origin"].string_param == origin
                assert shared_memory.get_contents_as_numpy(region, np.float32, [4], 32).tolist() == [8.0] * 4
        finally:
            client.unregister_system_shared_memory()
            shared_memory.destroy_shared_memory_region(region)
