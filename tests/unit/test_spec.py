"""Layers of a specification become wishes, wishes become the fact that is published."""

from __future__ import annotations

import pytest

from buyer_cli.spec import Layer, SpecError, Wish, default_name, file_layer, flag_layer, merge, script_argv, submission, wishes
from events import codec
from events.market import Policy
from events.quantities import Target
from events.values import BlobRef, Isolation, JobKind, Network, Tier

JOB = "j" + "a" * 19


def wish_of(layer: Layer) -> Wish:
    (wish,) = wishes(layer)
    return wish


def refusal(values: dict[str, object]) -> SpecError:
    with pytest.raises(SpecError) as caught:
        wishes(file_layer(values, "job.toml"))
    return caught.value


def test_a_job_of_which_nothing_is_said_asks_for_one_card_and_the_markets_time() -> None:
    wish = wish_of({"command": ("nvidia-smi",)})
    assert (1, None, 50, 3, None) == (
        wish.requirements.num_gpus,
        wish.timeout_s,
        wish.priority,
        wish.retries,
        wish.max_price_uusd_per_gpu_hour,
    )
    assert "nvidia-smi" == wish.name
    assert 3600 == submission(wish, ("nvidia-smi",), JOB).timeout_s


@pytest.mark.parametrize(
    ("kind", "usual_s", "changed_s"), [(JobKind.BATCH, 3600, 61), (JobKind.NOTEBOOK, 7200, 62), (JobKind.CONTAINER, 10800, 63)]
)
def test_the_market_says_how_long_a_job_of_each_kind_may_run(kind: JobKind, usual_s: int, changed_s: int) -> None:
    policy = Policy(timeout_batch_s=61, timeout_notebook_s=62, timeout_container_s=63)
    (wish,) = wishes({"image": "a:1"}, kind)
    assert (usual_s, changed_s) == (submission(wish, ("a",), JOB).timeout_s, submission(wish, ("a",), JOB, policy=policy).timeout_s)
    (named,) = wishes({"image": "a:1", "timeout": 5}, kind)
    assert 5 == submission(named, ("a",), JOB, policy=policy).timeout_s


def test_the_limits_of_use_reach_the_fact() -> None:
    flags = {"estimate": "10m", "estimate-limit": "2", "idle-timeout": "30m", "min-utilisation": "10% / 30m", "gpu-memory-limit": "20GB"}
    event = submission(wish_of(flag_layer(flags)), ("python", "a.py"), JOB)
    assert (600, 2, 1800, 10, 1800, 19074) == (
        event.estimate_s,
        event.estimate_limit,
        event.idle_timeout_s,
        event.min_utilisation_percent,
        event.min_utilisation_window_s,
        event.gpu_memory_limit_mib,
    )


def test_a_multiple_of_an_estimate_needs_the_estimate() -> None:
    assert "none is given" in refusal({"command": "a", "estimate-limit": 2}).why


@pytest.mark.parametrize("text", ["10", "10%", "10/30m", "0%/30m", "101%/30m", "x%/30m", "10%/", "10%/soon"])
def test_a_utilisation_is_a_percentage_in_a_time(text: str) -> None:
    assert "10%/30m" in refusal({"command": "a", "min-utilisation": text}).hint


def test_every_flag_reaches_the_fact() -> None:
    flags = {
        "gpus": "2",
        "vram": "24GB",
        "total-vram": "40GB",
        "gpu-model": ("RTX 4090", "A100"),
        "min-cuda": "12.4",
        "max-price": "0.40",
        "max-total": "1.50",
        "cores": "4",
        "memory": "8GiB",
        "shm": "1GiB",
        "image": "python:3.12",
        "timeout": "2h",
        "queue-timeout": "5m",
        "estimate": "10m",
        "priority": "high",
        "retries": "1",
        "name": "my job",
        "label": ("team=vision",),
        "env": ("EPOCHS=3",),
        "network": "egress",
        "isolation": "container",
        "min-tier": "consistent",
        "allow-simulated": True,
    }
    inputs = BlobRef(sha256="0" * 64, size=3)
    event = submission(wish_of(flag_layer(flags)), ("python", "a.py"), JOB, inputs=inputs, inputs_bytes=9, node_id="n" + "a" * 15)
    needs = event.requirements
    assert (2, 22889, 38147, ("RTX 4090", "A100"), 12040) == (
        needs.num_gpus,
        needs.vram_mib,
        needs.total_vram_mib,
        needs.gpu_models,
        needs.min_cuda,
    )
    assert (4, 8192, 1024, Network.EGRESS, Isolation.CONTAINER) == (
        needs.cores,
        needs.memory_mib,
        needs.shm_mib,
        needs.network,
        needs.isolation,
    )
    assert (Tier.CONSISTENT, True, "n" + "a" * 15) == (needs.min_tier, needs.allow_simulated, needs.target_node)
    assert (400_000, 1_500_000) == (event.max_price_uusd_per_gpu_hour, event.max_total_uusd)
    assert (7200, 300, 600, 75, 1) == (event.timeout_s, event.queue_timeout_s, event.estimate_s, event.priority, event.retries)
    assert ("my job", {"team": "vision"}) == (event.name, event.labels)
    program = event.program
    assert (("python", "a.py"), {"EPOCHS": "3"}, "python:3.12") == (program.argv, program.env, program.image)
    assert (inputs, 9) == (program.inputs, program.inputs_bytes)
    assert event == codec.decode_event(codec.encode_event(event))


@pytest.mark.parametrize(
    ("text", "why"), [("-1", "negative"), ("9", "at most 8"), ("two", "not a whole number"), ("1.5", "not a whole number"), ("", "not")]
)
def test_a_number_of_cards_that_no_node_can_have_is_refused(text: str, why: str) -> None:
    with pytest.raises(SpecError) as caught:
        flag_layer({"gpus": text})
    assert why in caught.value.why
    assert f"--gpus {text}".rstrip() == caught.value.what


def test_an_unknown_key_is_refused_with_the_nearest_right_one() -> None:
    assert "did you mean gpus?" == refusal({"gpuz": 1}).hint
    assert "did you mean max-price?" == refusal({"max_prize": "0.4"}).hint
    assert "did you mean timeout?" == refusal({"time-out": "4h"}).hint


def test_a_gang_is_of_batch_jobs_without_target_or_choices() -> None:
    assert 4 == wish_of(file_layer({"nodes": 4, "command": ["true"]}, "x")).num_nodes
    assert "target" in refusal({"nodes": 2, "target": "node-a"}).why
    assert "same" in refusal({"nodes": 2, "or": "2x40GB"}).why
    assert "64" in refusal({"nodes": 65}).hint + refusal({"nodes": 65}).why


def test_keys_may_be_written_with_either_dash() -> None:
    assert 400_000 == file_layer({"max_price": "0.40"}, "x")["max-price"]
    assert "twice" in refusal({"max_price": "0.4", "max-price": "0.5"}).why


def test_later_layers_win_lists_are_replaced_and_tables_merged() -> None:
    script = file_layer({"gpus": 1, "vram": "24GB", "env": {"A": "1", "B": "1"}, "in": ["data"]}, "train.py")
    file = file_layer({"gpus": 2, "env": {"B": "2"}, "in": ["other"]}, "job.toml")
    flags = flag_layer({"gpus": "4", "env": ("C=3",)})
    merged = merge([script, file, flags])
    assert (4, 22889) == (merged["gpus"], merged["vram"])
    assert {"A": "1", "B": "2", "C": "3"} == merged["env"]
    assert ("other",) == merged["in"]


def test_a_script_on_the_command_line_takes_the_place_of_a_files_command() -> None:
    assert "command" not in merge([{"command": ("ls",)}, {"script": "a.py"}])
    assert {"command": ("ls",)} == merge([{"script": "a.py", "args": ("x",)}, {"command": ("ls",)}])


def test_a_switch_that_was_not_given_changes_nothing() -> None:
    assert {} == flag_layer({"allow-simulated": False, "gpus": None, "in": ()})


@pytest.mark.parametrize("name", ["API_KEY", "HF_TOKEN", "my_secret", "DB_PASSWORD"])
def test_a_variable_that_names_a_secret_is_refused(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        flag_layer({"env": (f"{name}=hunter2",)})
    assert "ledger for ever" in caught.value.why
    assert f"/run/secrets/{name}" in caught.value.hint
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


def test_a_secret_is_a_name_or_a_name_and_a_file() -> None:
    layer = flag_layer({"secret": ("HF_TOKEN", "ssh.key=id_ed25519")})
    assert {"HF_TOKEN": None, "ssh.key": "id_ed25519"} == layer["secret"]
    merged = merge([file_layer({"secret": ["HF_TOKEN", "A=a.txt"]}, "job.toml"), flag_layer({"secret": ("A=b.txt",)})])
    [wish] = wishes({"command": ("ls",), **merged})
    assert {"HF_TOKEN": None, "A": "b.txt"} == wish.secrets


@pytest.mark.parametrize("text", ["=hunter2", "a/b=hunter2", "-x=hunter2", "K=", "K" * 65, "K\n=hunter2", "K=hunt\0er2"])
def test_a_secret_that_cannot_be_meant_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        flag_layer({"secret": (text,)})
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "values",
    [
        {"name": "a\nb"},
        {"name": "\x1b[31mred"},
        {"image": "UPPER"},
        {"image": "--privileged"},
        {"label": {"Team": "x"}},
        {"label": {"team": "<script>"}},
        {"label": ["team"]},
        {"env": {"1A": "x"}},
        {"retries": 21},
        {"cores": -1},
        {"network": "host"},
        {"isolation": "vm"},
        {"gpus": {"count": 1}},
        {"vram": ["24GB", "1GB"]},
        {"vram": -1},
        {"vram": "1e999"},
        {"command": "nvidia\0smi"},
        {"in": [""]},
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_place(values: dict[str, object]) -> None:
    error = refusal(values)
    assert error.what.startswith("job.toml: ")
    assert error.why


def test_more_than_sixteen_labels_are_refused() -> None:
    assert "at most 16" in refusal({"label": {f"k{number}": "v" for number in range(17)}}).why


def test_each_target_makes_a_job_of_its_own() -> None:
    first, second = wishes(flag_layer({"target": ("rig-1::0,1", "rig-2")}))
    assert (Target("rig-1", (0, 1)), 2, (0, 1)) == (first.target, first.requirements.num_gpus, first.requirements.target_cards)
    assert (Target("rig-2"), 1, ()) == (second.target, second.requirements.num_gpus, second.requirements.target_cards)


def test_a_target_and_a_number_of_cards_must_not_contradict() -> None:
    with pytest.raises(SpecError, match="the target names 1 card"):
        wishes(flag_layer({"target": ("rig-1::0",), "gpus": "2"}))


def test_card_memory_without_a_card_is_refused() -> None:
    with pytest.raises(SpecError, match="asks for no card"):
        wishes(flag_layer({"gpus": "0", "vram": "24GB"}))


def test_a_name_is_made_from_the_script_or_the_command() -> None:
    assert "train.py" == default_name("folder/train.py", ())
    assert "h-llo-w-rld.py" == default_name("hällo wörld.py", ())
    assert "nvidia-smi" == default_name(None, ("/usr/bin/nvidia-smi", "-L"))
    assert "job" == default_name(None, ("...",))


def test_how_a_script_is_run_follows_from_its_name_and_its_first_line() -> None:
    assert ("python", "a.py", "--epochs", "3") == script_argv("a.py", b"im", ("--epochs", "3"))
    assert ("python", "a.py") == script_argv("a.py", b"#!", ())
    assert ("bash", "a.sh") == script_argv("a.sh", b"ec", ())
    assert ("./a.sh", "x") == script_argv("a.sh", b"#!", ("x",))
    assert ("./tool",) == script_argv("tool", b"#!", ())
    with pytest.raises(SpecError, match="nothing says how to run it"):
        script_argv("notes.txt", b"he", ())


def test_arguments_larger_than_an_event_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(SpecError, match="16 KiB"):
        submission(wish_of({"command": ("x",)}), ("x", *("y" * 8000 for _ in range(3))), JOB)


def test_too_many_arguments_are_refused_with_the_bound() -> None:
    with pytest.raises(SpecError, match="length <= 256"):
        submission(wish_of({"command": ("x",)}), ("x",) * 257, JOB)
