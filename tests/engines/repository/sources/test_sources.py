"""Names, secrets, signatures of MLflow models, and settings of sources."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import LoadFailed
from engines.repository.sources import manifest, mlflow
from engines.repository.sources.files import RemoteFile, arrange, scrub
from engines.repository.sources.objects import ObjectStore
from engines.repository.sources.opening import SourceOptions, Sources, is_remote
from engines.repository.sources.signature import MLMODEL, complete_config, tensors
from server.cli import cli
from server.cli.options.models import Repository
from tests.support import onnx_models


@given(st.lists(st.text(alphabet="ab1/.\\\0\n", min_size=1, max_size=12)))
def test_whatever_a_listing_says_every_path_stays_inside(names: list[str]) -> None:
    listing, _ = arrange(RemoteFile(name, 1, "") for name in names)
    home = Path("/srv/cache")
    for units in listing.values():
        for path in (path for unit in units.values() for path in unit):
            assert (home / path).resolve().is_relative_to(home)
            assert (home / path).resolve() == home / path


def test_secrets_do_not_reach_a_log() -> None:
    environment = {"AWS_SECRET_ACCESS_KEY": "abcdef123", "PATH": "/usr/bin", "MLFLOW_TRACKING_PASSWORD": "hunter22"}
    said = (
        "GET https://me:pass@host/x?X-Amz-Signature=12ab&X-Amz-Credential=AKIA/1&sv=3 with abcdef123 in /usr/bin, "
        "sig=a%2Fb&se=1, hunter22, AccountKey=zz==;"
    )
    clean = scrub(said, environment)
    for secret in ("pass@", "12ab", "AKIA", "abcdef123", "a%2Fb", "hunter22", "zz=="):
        assert secret not in clean
    assert "host/x" in clean
    assert "/usr/bin" in clean


def test_credentials_in_a_uri_are_refused() -> None:
    with pytest.raises(LoadFailed, match="belong in the environment") as refused:
        ObjectStore("memory://key:secret@bucket/models")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("uri", ["mlflow:models:/a/b/3", "mlflow:models:/a", "mlflow:models:/../3", "mlflow:runs:/a/b"])
def test_what_names_no_version_of_a_registry_is_refused(uri: str) -> None:
    with pytest.raises(LoadFailed, match="is neither"):
        mlflow.parse(uri)


def test_references_are_read() -> None:
    assert mlflow.parse("mlflow:models:/digits@champion") == mlflow.Reference("digits", alias="champion")
    assert mlflow.parse("models:/digits/3") == mlflow.Reference("digits", version="3")


def test_repositories_in_the_environment_may_be_uris() -> None:
    text = "/a:s3://bucket/x:mlflow:models:/m@live:/srv/mlflow:/srv/models:gs://b"
    parts = Repository().split_envvar_value(text)
    assert parts == ["/a", "s3://bucket/x", "mlflow:models:/m@live", "/srv/mlflow", "/srv/models", "gs://b"]
    assert [is_remote(part) for part in parts] == [False, True, True, False, False, True]


def test_an_unknown_scheme_is_a_wrong_setting() -> None:
    ran = CliRunner().invoke(cli, ["serve", "--model-repository", "ftp://host/models"])
    assert ran.exit_code == 2
    assert "known are s3://" in ran.output.replace("\n", " ")


def test_a_missing_library_is_called_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith(("fsspec", "urllib3")):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LoadFailed, match=r"kairos\[gcs\]"):
        ObjectStore("gs://bucket/models")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(LoadFailed, match=r"kairos\[mlflow\]"):
        mlflow.MlflowRegistry([mlflow.Reference("m", "1")])


def test_registries_and_signing_keys_exclude_each_other(tmp_path: Path) -> None:
    manifest.make_keys(tmp_path / "private", tmp_path / "public")
    options = SourceOptions(uris=("mlflow:models:/m/1",), cache_dir=tmp_path, signing_keys=(tmp_path / "public",))
    with pytest.raises(LoadFailed, match="cannot be signed"):
        Sources(options)


def mlmodel(inputs: str, outputs: str = "") -> str:
    return f"flavors: {{onnx: {{data: model.onnx}}}}\nsignature:\n  inputs: '{inputs}'\n  outputs: '{outputs}'\n"


def tensor(name: str, dtype: str = "float32", shape: str = "[-1, 4]") -> str:
    named = f'"name": "{name}", ' if name else ""
    return f'[{{{named}"type": "tensor", "tensor-spec": {{"dtype": "{dtype}", "shape": {shape}}}}}]'


@pytest.mark.parametrize(
    ("about", "config", "expected"),
    [
        (mlmodel(tensor("x0"), tensor("y0")), "", 'input { name: "x0" data_type: TYPE_FP32 dims: 4 }'),
        (mlmodel(tensor(""), tensor("")), "", 'output { name: "y0" data_type: TYPE_FP32 dims: 4 }'),
        (
            mlmodel(tensor("x0"), tensor("y0")),
            "max_batch_size: 0",
            'input { name: "x0" data_type: TYPE_FP32 dims: -1 dims: 4 }',
        ),
        (
            mlmodel(tensor("x0", shape="[2, 4]"), tensor("y0")),
            "",
            'input { name: "x0" data_type: TYPE_FP32 dims: 2 dims: 4 }',
        ),
        (mlmodel(tensor("x0")), 'input { name: "x0" }', ""),
        (mlmodel('[{"type": "double", "name": "age"}]'), "", ""),
        ("flavors: {}", "", ""),
    ],
)
def test_a_signature_completes_the_configuration(tmp_path: Path, about: str, config: str, expected: str) -> None:
    model = onnx_models.write(tmp_path, "m", config=config)
    (model / "1" / MLMODEL).write_text(about)
    complete_config(model)
    path = model / "config.pbtxt"
    written = " ".join(path.read_text().split()) if path.exists() else ""
    assert written.startswith(config)
    assert expected in written
    assert expected or "input" not in written.removeprefix(config)


def test_columns_of_a_table_are_no_tensors() -> None:
    assert tensors({"signature": {"inputs": '[{"type": "long", "name": "a"}]'}}, "inputs") == []


def test_models_are_signed_and_verified_from_the_command_line(tmp_path: Path) -> None:
    model = onnx_models.write(tmp_path, "m", [1, 2], config="max_batch_size: 4")
    private, public = str(tmp_path / "private.pem"), str(tmp_path / "public.pem")
    run = CliRunner().invoke
    assert run(cli, ["models", "keys", private, public]).exit_code == 0
    assert (tmp_path / "private.pem").stat().st_mode & 0o077 == 0
    assert run(cli, ["models", "keys", private, public]).exit_code == 1, "keys are not overwritten"
    unsigned = run(cli, ["models", "verify", str(model), "--model-signing-key", public])
    assert unsigned.exit_code == 1
    signed = run(cli, ["models", "sign", str(model), "--key", private])
    assert signed.output.splitlines() == ["signed m/1", "signed m/2", "signed m"]
    verify = ["models", "verify", str(model), "--model-signing-key", public]
    assert run(cli, verify).exit_code == 0
    (model / "2" / "model.onnx").write_bytes(b"something else")
    found = run(cli, verify)
    assert found.exit_code == 1
    assert "m/2: 'model.onnx' is not what the manifest says" in found.output
