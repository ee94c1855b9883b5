"""The configuration: every mistake at once, each with its path and line."""

from __future__ import annotations

import copy
import json
import os
import textwrap
import threading
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.config import SidecarConfig, json_schema, load, load_with_tree, parse
from sidecar.errors import ConfigError, Problem

EXAMPLE = """
models:
  - name: digits
    variants:
      - name: onnx
        version: "2"
        roles: [serving]          # serving | reference | mirror | previous | fallback
        runtime: {kind: onnxruntime, path: digits-2.onnx}
gateway:
  grpc: {address: "127.0.0.1:9000"}
  http: {address: "127.0.0.1:8080"}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "digits.yaml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def mistakes(source: Path | dict) -> list[tuple[str, str]]:
    """(path, message) of every problem of a file, or of a tree."""
    with pytest.raises(ConfigError) as caught:
        load(source) if isinstance(source, Path) else parse(source)
    return [(problem.path, problem.message) for problem in caught.value.problems]


def only_mistake(source: Path | dict) -> tuple[str, str]:
    found = mistakes(source)
    assert len(found) == 1, found
    return found[0]


def tree(**gateway: object) -> dict:
    return {"models": [model()], "gateway": gateway}


def model(*variants: dict, **keys) -> dict:
    return {"name": "digits", "variants": list(variants or [variant()]), **keys}


def variant(name: str = "onnx", version: object = "2", roles: object = ("serving",)) -> dict:
    runtime = {"kind": "onnxruntime", "path": "m.onnx"}
    roles = list(roles) if isinstance(roles, tuple) else roles
    return {"name": name, "version": version, "roles": roles, "runtime": runtime}


# --- what is right --------------------------------------------------------------------------------


def test_the_example_is_read_and_everything_else_has_a_default(tmp_path):
    (tmp_path / "digits-2.onnx").write_bytes(b"x")
    config = load(write(tmp_path, EXAMPLE))
    assert config.models[0].variants[0].key == "2/onnx"
    assert config.models[0].variants[0].runtime.path == tmp_path / "digits-2.onnx"
    assert config.gateway.workers == 1
    assert config.gateway.admin.read_token() is None
    with pytest.raises(ValueError, match="frozen"):
        config.gateway.workers = 2


def test_what_was_checked_is_what_is_handed_on(tmp_path):
    pipe = tmp_path / "sidecar.yaml"  # gives its text once: a second reading would wait for ever
    os.mkfifo(pipe)
    content = tree(workers=3)
    writer = threading.Thread(target=pipe.write_text, args=(yaml.safe_dump(content),), daemon=True)
    writer.start()
    config, plain = load_with_tree(pipe, check_files=False)
    writer.join(20)
    assert config.gateway.workers == 3
    assert plain == content
    assert parse(plain, base_dir=tmp_path) == config


def test_paths_are_relative_to_the_file_wherever_it_is_read_from(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "digits-2.onnx").write_bytes(b"x")
    text = EXAMPLE.replace("digits-2.onnx", "models/digits-2.onnx")
    text = text.replace("127.0.0.1:9000", "unix:run/grpc.sock")
    path = write(tmp_path, text + "  trace: {file: trace.jsonl}\n")
    monkeypatch.chdir(tmp_path.parent)
    config = load(path.relative_to(tmp_path.parent))
    assert config.models[0].variants[0].runtime.path == tmp_path / "models" / "digits-2.onnx"
    assert config.gateway.trace.file == tmp_path / "trace.jsonl"
    assert config.gateway.grpc.address == f"unix:{tmp_path}/run/grpc.sock"


def test_a_whole_number_is_a_version_and_a_date_stays_text(tmp_path):
    text = EXAMPLE.replace('"2"', "2")
    config = load(write(tmp_path, text), check_files=False)
    assert config.models[0].variants[0].version == "2"
    text = EXAMPLE.replace('"2"', "2026-01-31")
    config = load(write(tmp_path, text), check_files=False)
    assert config.models[0].variants[0].version == "2026-01-31"


def test_anchors_and_merge_keys_work(tmp_path):
    text = """
    models:
      - name: digits
        variants:
          - &first
            {name: a, version: 1, roles: [serving], runtime: {kind: onnxruntime, path: m.onnx}}
          - {<<: *first, version: 2}
    """
    config = load(write(tmp_path, text), check_files=False)
    assert [v.key for v in config.models[0].variants] == ["1/a", "2/a"]


# --- the file itself ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "is empty; it must be a mapping with the key `models`"),
        (b"# nothing but this\n", "is empty; it must be a mapping with the key `models`"),
        (b"- a\n- b\n", "is a list; it must be a mapping with the key `models`"),
        (b"just words\n", "is text; it must be a mapping with the key `models`"),
        (b"\x80\x81\xff", "is not text: byte 0 is not UTF-8"),
        (b"a: 1\nb: \x00\n", "holds the character U+0000: is it the right file?"),
        (b"\x08\x07:PK" * 3, "holds the character U+0008: is it the right file?"),
        (b"[" * 10_000, "is nested too deeply"),
        (b"[" * 200 + b"]" * 200, "is nested too deeply"),
        (b"a: &a [*a, *a]\n", "is nested too deeply"),
        (b"a: !!int abc\n", "not valid YAML: invalid literal for int() with base 10: 'abc'"),
        (b"a: 1\n---\nb: 2\n", "not valid YAML: but found another document (column 1), "
         "expected a single document in the stream that begins on line 1"),
        (b"#" * (4 * 2**20 + 1), "is larger than 4 MiB: is it the right file?"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_one_clear_mistake(tmp_path, data, expected):
    path = tmp_path / "digits.yaml"
    path.write_bytes(data)
    assert only_mistake(path) == ("", expected)


def test_aliases_cannot_expand_without_bound(tmp_path):
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    path = write(tmp_path, "\n".join(lines))
    assert only_mistake(path) == ("", "expands to more than 100000 values")


def test_broken_yaml_is_shown_with_its_line(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, "models:\n  - name: a\n   roles: [b\n"))
    assert str(caught.value).startswith(f"{tmp_path}/digits.yaml: 1 problem\n")
    assert f"{tmp_path}/digits.yaml:3: not valid YAML: " in str(caught.value)


def test_a_missing_file_and_a_folder_are_mistakes(tmp_path):
    assert only_mistake(tmp_path / "no.yaml") == ("", "cannot be read: No such file or directory")
    assert only_mistake(tmp_path) == ("", "cannot be read: Is a directory")


def test_a_key_given_twice_is_a_mistake_with_both_lines(tmp_path):
    path = write(tmp_path, EXAMPLE + "  grpc: {reflection: false}\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    twice = [p for p in caught.value.problems if p.path == "gateway.grpc"]
    assert [(p.line, p.message) for p in twice] == [(12, "is given twice, first on line 10")]


# --- ten mistakes, ten messages -------------------------------------------------------------------

TEN = """\
models:
  - name: "my digits"
    default_version: "3"
    variants:
      - {name: onnx, version: 1, roles: [serving], runtime: {kind: onnxruntime, path: no.onnx}}
      - {name: int8, version: 2.0, roles: [serving], runtime: {kind: onnxrt, path: m.onnx}}
      - {name: pt, version: "2", roles: [], runtime: {kind: pytorch, path: m.pt2, threads: 3}}
gateway:
  workers: 0
  grpc: {address: "9000"}
  admin: {token: "${SIDECAR_TEST_NO_SUCH_VARIABLE}"}
  drian: {delay_s: 1}
"""


def test_ten_mistakes_are_ten_messages_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.delenv("SIDECAR_TEST_NO_SUCH_VARIABLE", raising=False)
    for name in ("m.onnx", "m.pt2"):
        (tmp_path / name).write_bytes(b"x")
    path = write(tmp_path, TEN)
    with pytest.raises(ConfigError) as caught:
        load(path)
    expected = {
        (2, "models[0].name"): "'my digits' must begin with a letter or digit and hold only",
        (5, "models[0].variants[0].runtime.path"): "no such file: no.onnx (paths are relative to",
        (6, "models[0].variants[1].version"): "must be text, not 2.0: put it in quotes",
        (6, "models[0].variants[1].runtime"): "kind 'onnxrt' is unknown; choose one of: 'onnxrunti",
        (7, "models[0].variants[2].roles"): "needs at least one item",
        (7, "models[0].variants[2].runtime.threads"): "unknown key; did you mean intra_op_threads?",
        (9, "gateway.workers"): "must be at least 1, not 0",
        (10, "gateway.grpc.address"): "'9000' is not an address; write host:port (127.0.0.1:9000,",
        (
            11,
            "gateway.admin.token",
        ): "the environment variable SIDECAR_TEST_NO_SUCH_VARIABLE is not",
        (12, "gateway.drian"): "unknown key; did you mean drain?",
    }
    found = {(problem.line, problem.path): problem.message for problem in caught.value.problems}
    assert list(found) == list(expected)
    for where, message in expected.items():
        assert found[where].startswith(message)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: 10 problems"
    assert len(lines) == 11
    assert lines[7] == f"  {path}:9: gateway.workers: must be at least 1, not 0"


NO_ADDRESS = "is not an address; write host:port (127.0.0.1:9000, [::1]:9000)"


@pytest.mark.parametrize(
    ("gateway", "path", "message"),
    [
        ({"workers": "two"}, "workers", "must be a whole number, not 'two'"),
        ({"workers": 1.5}, "workers", "must be a whole number, not 1.5"),
        ({"workers": 10**5000}, "workers", "must be at most 256, not a huge number"),
        ({"workers": [1]}, "workers", "must be a whole number, not a list"),
        ({"default_timeout_s": float("nan")}, "default_timeout_s",
         "must be a finite number, not nan"),
        ({"default_timeout_s": 0}, "default_timeout_s", "must be more than 0, not 0"),
        ({"grpc": None}, "grpc", "is empty; it must be a mapping"),
        ({"grpc": "127.0.0.1:1"}, "grpc", "must be a mapping, not '127.0.0.1:1'"),
        ({"grpc": {"reflection": "si"}}, "grpc.reflection", "must be true or false, not 'si'"),
        ({"cache": {"max_bytes": "x" * 500}}, "cache.max_bytes",
         f"must be a whole number, not '{'x' * 79}…"),
        ({5: 1}, "[5]", "the key must be text: put it in quotes"),
        ({"health": 9000}, "health", "must be text, not 9000: put it in quotes"),
        ({"health": "localhost"}, "health", f"'localhost' {NO_ADDRESS}"),
        ({"health": "::1:9000"}, "health", f"'::1:9000' {NO_ADDRESS}"),
        ({"health": "h:70000"}, "health", f"'h:70000' {NO_ADDRESS}"),
        ({"health": "http://h:1"}, "health",
         "'http://h:1' is a URL; write host:port (127.0.0.1:9000), without a scheme"),
        ({"health": "unix:"}, "health", "a socket's path has 1 to 107 bytes, not 0"),
        ({"health": "unix:/" + "x" * 107}, "health", "a socket's path has 1 to 107 bytes, not 108"),
        ({"trace": {"file": "~no-such-user-here/x"}}, "trace.file", None),
    ],
)  # fmt: skip
def test_a_wrong_value_is_said_plainly(gateway, path, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        parse({**tree(), "gateway": gateway}, base_dir=tmp_path)
    (problem,) = caught.value.problems
    assert problem.path == f"gateway{path if path.startswith('[') else '.' + path}"
    assert problem.message == (message or "'~no-such-user-here/x': the home directory is not known;"
                               " write the whole path")  # fmt: skip


@pytest.mark.parametrize("roles", [[], "serving", None, [["serving"]]])
def test_roles_that_are_wrong_give_one_message(roles):
    path, message = only_mistake({"models": [model(variant(roles=roles))]})
    assert path.startswith("models[0].variants[0].roles")
    assert ("needs at least one item" in message) == (roles == [])


def test_a_list_of_wrong_items_is_not_called_empty():
    found = mistakes({"models": [{"name": "a", "variants": [{"name": "b"}]}]})
    assert [path.removeprefix("models[0].variants[0].") for path, _ in found] == [
        "version", "roles", "runtime",
    ]  # fmt: skip
    assert {message for _, message in found} == {"is required"}


def test_files_that_cannot_be_models_are_mistakes(tmp_path):
    (tmp_path / "folder").mkdir()
    base = {"kind": "pytorch", "path": "m"}
    for runtime, path, message in [
        ({"path": "folder"}, "path", "folder is a folder"),
        ({"path": "x" * 300}, "path", f"{'x' * 300} cannot be read: File name too long"),
        ({"path": "digits.yaml/x"}, "path", "digits.yaml/x cannot be read: Not a directory"),
        ({"path": "digits.yaml", "factory_path": "digits.yaml"}, "factory_path",
         "digits.yaml is not a folder"),
        ({"path": "digits.yaml", "format": "state_dict"}, "",
         "a state_dict holds only weights; name the module's `factory` too"),
    ]:  # fmt: skip
        content = {"models": [model({**variant(), "runtime": {**base, **runtime}})]}
        found = only_mistake(write(tmp_path, yaml.safe_dump(content)))
        assert found == (f"models[0].variants[0].runtime.{path}".rstrip("."), message)


# --- relations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "path", "message"),
    [
        ([model(), model()], "models[1].name", "another model is called digits"),
        ([model(variant(), variant(roles=("mirror",)))], "models[0].variants[1]",
         "another variant is 2/onnx"),
        ([model(variant(version=2), variant(roles=("mirror",)))], "models[0].variants[1]",
         "another variant is 2/onnx"),
        ([model(variant("a"), variant("b"))], "models[0].variants[1].roles",
         "another variant of version 2 is serving; one answers, the others can be mirror, "
         "reference or fallback"),
        ([model(variant(roles=("mirror",)))], "models[0].variants",
         "no variant has the role serving"),
        ([model(variant(roles=("serving", "serving")))], "models[0].variants[0].roles",
         "serving is given twice"),
        ([model(default_version="7")], "models[0].default_version",
         "no serving variant has version '7'; there is: 2"),
        ([model(fallback={"after_ms": 5})], "models[0].fallback.after_ms",
         "is set, but no variant has the role fallback"),
        ([model(variant(), variant("b", 3, ("candidate", "serving")))],
         "models[0].variants[1].roles",
         "it is a candidate, which answers nobody, and serving: leave one away"),
        ([model(variant(), variant("b", roles=("candidate",)))], "models[0].variants[1].roles",
         "version 2 serves already: a candidate is another version; for another form of this one "
         "take the role mirror"),
        ([model(variant(), variant("b", 3, ("candidate",)), variant("c", 3, ("candidate",)))],
         "models[0].variants[2].roles", "another variant of version 3 is the candidate; one "
         "is compared, and promoted"),
        ([model(variant(roles=("serving", "fallback")))], "models[0].variants[0].roles",
         "it is the only variant that serves; another one must be its fallback"),
        ([model(variant(), variant("b", roles=("fallback",)), variant("c", roles=("fallback",)))],
         "models[0].variants[2].roles", "another variant is the fallback already; a model has one"),
    ],
)  # fmt: skip
def test_relations_between_variants(models, path, message):
    assert only_mistake({"models": models}) == (path, message)


def test_relations_hold_for_a_model_that_keeps_them():
    models = [
        model(variant("a", 1), variant("b", 2), variant("c", 2, ("fallback", "mirror")),
              default_version=1, fallback={"after_ms": 5}),
        {**model(cache=True), "name": "other"},
    ]  # fmt: skip
    assert parse({"models": models}).models[0].default_version == "1"


@pytest.mark.parametrize(
    ("gateway", "path", "message"),
    [
        ({"health": "127.0.0.1:9000"}, "health", "127.0.0.1:9000 is also gateway.grpc.address"),
        ({"grpc": {"address": "h:8"}, "http": {"address": "h:8"}}, "http.address",
         "h:8 is also gateway.grpc.address"),
        ({"hooks": "0.0.0.0:8080"}, "hooks",
         "0.0.0.0:8080 is also gateway.http.address (127.0.0.1:8080)"),
        ({"admin": {"address": "0.0.0.0:8080"}}, "admin.address",
         "0.0.0.0:8080 is also gateway.http.address (127.0.0.1:8080)"),
        ({"workers": 2, "grpc": {"address": "unix:/run/a"}}, "grpc.address",
         "a unix socket has one owner: with gateway.workers above 1, write host:port"),
        ({"admin": {"token": "a", "token_file": "b"}}, "admin",
         "give token or token_file, not both"),
    ],
)  # fmt: skip
def test_relations_between_listeners(gateway, path, message):
    assert only_mistake(tree(**gateway)) == (f"gateway.{path}", message)


def test_listeners_that_are_off_or_on_a_free_port_do_not_collide():
    parse(tree(http=None, health="127.0.0.1:8080"))
    parse(tree(grpc={"address": "127.0.0.1:0"}, http={"address": "127.0.0.1:0"}))


def test_a_model_that_asks_for_a_cache_that_is_off():
    content = {"models": [model(cache=True)], "gateway": {"cache": {"max_bytes": 0}}}
    expected = ("models[0].cache", "is true, but gateway.cache.max_bytes is 0")
    assert only_mistake(content) == expected


def test_a_remote_that_is_the_gateway_itself():
    runtime = {"kind": "remote", "address": "127.0.0.1:9000"}
    path, message = only_mistake({"models": [model({**variant(), "runtime": runtime})]})
    assert path == "models[0].variants[0].runtime.address"
    assert message == "127.0.0.1:9000 is gateway.grpc.address: it would call itself"


# --- secrets --------------------------------------------------------------------------------------


def test_a_secret_comes_from_the_environment_or_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SIDECAR_TEST_TOKEN", "hush")
    assert (
        parse(tree(admin={"token": "${SIDECAR_TEST_TOKEN}"})).gateway.admin.read_token() == "hush"
    )
    (tmp_path / "token").write_text("from-file\n")
    config = parse(tree(admin={"token_file": "token"}), base_dir=tmp_path)
    assert config.gateway.admin.read_token() == "from-file"
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        config.gateway.admin.read_token()


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("${SIDECAR_TEST_TOKEN}", "the environment variable SIDECAR_TEST_TOKEN is empty"),
        ("Bearer ${SIDECAR_TEST_TOKEN}", "${SIDECAR_TEST_TOKEN} must stand alone, without other"),
        ("", "is empty"),
        (271828182845, "must be text, not the given value: put it in quotes"),
        (["hushhush"], "must be text, not a list"),
    ],
)
def test_a_wrong_secret_is_a_mistake_that_does_not_tell_it(token, message, monkeypatch):
    monkeypatch.setenv("SIDECAR_TEST_TOKEN", "")
    path, found = only_mistake(tree(admin={"token": token}))
    assert path == "gateway.admin.token"
    assert found.startswith(message)
    assert "271828" not in found
    assert "hush" not in found


def test_secrets_by_name_come_from_the_environment_too(monkeypatch):
    monkeypatch.setenv("SIDECAR_TEST_TOKEN", "hush")

    def told(value):
        return {**tree(), "telemetry": {"traces": {"headers": {"authorization": value}}}}

    headers = parse(told("${SIDECAR_TEST_TOKEN}")).telemetry.traces.headers
    assert headers["authorization"].get_secret_value() == "hush"
    for value in (271828182845, ["hushhush"], "Bearer ${SIDECAR_TEST_TOKEN}"):
        path, found = only_mistake(told(value))
        assert path == "telemetry.traces.headers.authorization"
        assert "271828" not in found
        assert "hush" not in found


def test_a_secret_is_never_printed():
    config = parse(tree(admin={"token": "hushhush"}))
    assert "hushhush" not in repr(config)
    assert "hushhush" not in config.model_dump_json()
    content = tree(admin={"token": "hushhush", "token_file": "x", "tokn": 1}, workers=0)
    assert "hushhush" not in str(mistakes(content))


def test_the_environment_is_for_secrets_alone(monkeypatch):
    monkeypatch.setenv("SIDECAR_TEST_PORT", "9001")
    content = tree(grpc={"address": "127.0.0.1:${SIDECAR_TEST_PORT}"})
    content["models"][0]["name"] = "${SIDECAR_TEST_PORT}"
    message = "${SIDECAR_TEST_PORT} is read from the environment in secrets only; write it out"
    assert mistakes(content) == [("models[0].name", message), ("gateway.grpc.address", message)]


# --- the schema -----------------------------------------------------------------------------------


def test_the_schema_knows_the_example_and_every_key():
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["required"] == ["models"]
    for name, node in {**schema["$defs"], "root": schema}.items():
        assert node["additionalProperties"] is False, name
    variant_keys = schema["$defs"]["VariantConfig"]["properties"]
    assert set(yaml.safe_load(EXAMPLE)["models"][0]["variants"][0]) <= set(variant_keys)
    kinds = variant_keys["runtime"]["discriminator"]["mapping"]
    assert set(kinds) == {"onnxruntime", "pytorch", "tensorrt", "tensorrt_rtx", "remote"}


# --- whatever is written --------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.sampled_from(["name", "version", "roles", "runtime", "kind", "path", "address", "x"])
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | SCALARS, inner, max_size=4),
    max_leaves=12,
)
PLACES = [
    ("models",), ("models", 0), ("models", 0, "variants"), ("models", 0, "variants", 0),
    ("models", 0, "variants", 0, "roles"), ("models", 0, "variants", 0, "runtime"),
    ("models", 0, "variants", 0, "version"), ("models", 0, "fallback"), ("gateway",),
    ("gateway", "grpc"), ("gateway", "admin"), ("gateway", "cache"), ("log",),
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(PLACES), value=ANYTHING)
def test_whatever_stands_somewhere_is_read_or_refused_with_a_path(place, value):
    content = {"models": [model()], "gateway": {"grpc": {}, "admin": {}, "cache": {}}}
    node = copy.deepcopy(content)
    holder = node
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    problems: list[Problem] = []
    try:
        assert isinstance(parse(node, base_dir=Path("/")), SidecarConfig)
    except ConfigError as error:
        problems = error.problems
    assert all(problem.message and problem.path for problem in problems)


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=60) | st.text("a:-[]{}&*!|>'\"#%@`?,\n ", max_size=60).map(str.encode)
)
def test_whatever_bytes_a_file_holds_are_read_or_refused(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        load(path)
