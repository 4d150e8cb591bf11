"""The shell: in this process as it is typed (`checks.shell`), and a few times by its real entry points."""

import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import sdelens as sl
from sdelens.core import compilation
from sdelens.shell import session
from sdelens.shell.streams import protect_streams
from tests.checks import assert_fits, assert_same_numbers, shell
from tests.site import site_module

ROOT = Path(__file__).parents[1]
SCRIPT = Path(sys.executable).with_name("sdelens")
SMALL = ("--steps", "12", "--paths", "70")


def script(*arguments, command=(str(SCRIPT),), expect=0, **environment):
    """The same in a process of its own, of one thread of BLAS and no compiled programs kept."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "100", **environment}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == expect, done.stderr
    return done


def test_the_script_prints_the_table_and_writes_the_folder(tmp_path):
    out = tmp_path / "new" / "folder"
    done = script("compare", "--optimizer", "rmspropw", *SMALL, "--seed", "3", "--devices", "3", "--out", str(out))
    assert "malladi2022" in done.stdout
    assert "RMSpropW" in done.stdout
    names = {p.name for p in out.iterdir()}
    assert names == {"index.html", *(f"rmspropw-quadratic.{s}" for s in ("nc", "png", "pdf", "csv", "tex"))}
    page = (out / "index.html").read_text()
    assert 'src="rmspropw-quadratic.png"' in page
    assert site_module("html_rules").findings(page) == []
    assert "sdelens compare --optimizer rmspropw" in page
    for link in re.findall(r'href="([^"#]+)"', page):
        assert (out / link).is_file()
    result = sl.load(out / "rmspropw-quadratic.nc")
    assert result.info["run"]["seed"] == 3
    assert result.info["device"]["count"] == 3  # whatever cores there are
    again = shell("compare", "--optimizer", "rmspropw", *SMALL, "--out", str(out), expect=2)
    assert "holds results already" in again.stderr


def test_the_shell_has_the_library_s_numbers_and_replaces_results_only_with_leave(tmp_path):
    subject = ("--optimizer", "sgd(lr=0.1)", "--problem", "quadratic([1, 4], start=2)", "--noise", "gaussian([0.5, 1])")
    options = ("compare", *subject, *SMALL, "--out", str(tmp_path))
    (tmp_path / "index.html").write_text("")
    assert "holds results already" in shell(*options, expect=2).stderr
    done = shell(*options, "--overwrite")
    noise = sl.GaussianNoise([0.5, 1.0])
    result = sl.compare(sl.Quadratic([1.0, 4.0], 2.0), noise, sl.SGD(0.1), steps=12, paths=70)
    assert str(result).splitlines()[:5] == done.stdout.splitlines()[:5]
    assert_same_numbers(sl.load(tmp_path / "sgd-quadratic.nc").dataset, result.dataset)


@pytest.fixture
def asked(monkeypatch):
    """What the shell's `compare` asks of the library, which is not run: what was given, and the options."""
    calls = []

    def note(*given, **options):
        calls.append((given, options))
        raise ValueError("asked")

    def of(*words):
        monkeypatch.setattr(sl, "compare", note)
        refused = shell("compare", *words, expect=2)
        monkeypatch.undo()
        assert refused.stderr == "sdelens: asked\n"
        return calls.pop()

    return of


def described(problem, noise, optimizer):
    """What results say of the three; it differs wherever they do."""
    return [problem.describe(), noise.bind(problem).describe(), optimizer.describe()]


def digits(name, **options):
    return sl.network(name, "digits", **options)


TWO = sl.Quadratic([1.0, 2.0])
COSINE = sl.Warmup(2, sl.Cosine(10, 0.1))
NETWORK = dict(subset=20, width=4, depth=1, gradient_dtype="bfloat16")
REGRESSION = "linear-regression([1, 0.5], 0.3, solution=2"
SUBJECTS = {
    "rosenbrock": (
        ("rosenbrock(start=[0.5, 0.5])", "gaussian", "signsgd(lr=0.001)"),
        lambda: (sl.Rosenbrock([0.5, 0.5]), sl.GaussianNoise(1.0), sl.SignSGD(0.001)),
    ),
    "embedded saddle": (
        ("embedded-saddle(lam=2)", "gaussian", "adam(b1=0.8)"),
        lambda: (sl.EmbeddedSaddle(lam=2.0), sl.GaussianNoise(1.0), sl.AdamW(0.01, b1=0.8)),
    ),
    "breast cancer": (
        ("mlp(breast-cancer, width=4, depth=2)", "gaussian", "sgd"),
        lambda: (sl.network("mlp", "breast-cancer", width=4, depth=2), sl.GaussianNoise(1.0), sl.SGD(0.01)),
    ),
    "part of a set": (
        ("cnn(subset=16, data-seed=3, channels=2, dense=3, seed=1)", "gaussian", "sgd"),
        lambda: (
            sl.network("cnn", subset=16, data_seed=3, channels=2, dense=3, seed=1),
            sl.GaussianNoise(1.0),
            sl.SGD(0.01),
        ),
    ),
    "Student's t": (
        ("quadratic([1, 2])", "student-t(df=1)", "signsgd(0.1, schedule=warmup(2, cosine(10, end=0.1)))"),
        lambda: (TWO, sl.StudentTNoise(1.0, 1), sl.SignSGD(0.1, schedule=COSINE)),
    ),
    "a sum": (
        ("quadratic([1, 2])", "laplace(2) + gaussian(scale=[1, 3])", "momentum(nesterov=True)"),
        lambda: (TWO, sl.LaplaceNoise(2.0) + sl.GaussianNoise([1.0, 3.0]), sl.Momentum(0.01, nesterov=True)),
    ),
    "a sum for every worker": (
        ("quadratic([1, 2])", "distributed(gaussian(2) + laplace(2) + uniform, 4)", "signsgd(0.1)"),
        lambda: (
            TWO,
            sl.DistributedNoise(sl.GaussianNoise(2.0) + sl.LaplaceNoise(2.0) + sl.UniformNoise(1.0), 4),
            sl.SignSGD(0.1),
        ),
    ),
    "workers": (
        ("quadratic([1, 2])", "distributed(uniform, workers=8, compression=random-k(0.5))", "rmsprop(b2=0.9)"),
        lambda: (TWO, sl.DistributedNoise(sl.UniformNoise(1.0), 8, sl.RandomK(0.5)), sl.RMSpropW(0.01, 0.9)),
    ),
    "mini-batches": (
        (
            "mlp(dataset=digits, subset=20, width=4, depth=1, gradient_dtype='bfloat16')",
            "minibatch(batch_size=5, covariance=diagonal, refresh=2)",
            "adamw",
        ),
        lambda: (digits("mlp", **NETWORK), sl.MinibatchNoise(5, covariance="diagonal", refresh=2), sl.AdamW(0.01)),
    ),
    "regression": (
        (f"{REGRESSION})", "minibatch(2)", "sgd(lr=0.1)"),
        lambda: (sl.LinearRegression([1.0, 0.5], 0.3, solution=2.0), sl.MinibatchNoise(2), sl.SGD(0.1)),
    ),
    "regression on a sample": (
        (f"{REGRESSION}, samples=30, seed=4)", "minibatch(2)", "sgd(lr=0.1)"),
        lambda: (
            sl.LinearRegression([1.0, 0.5], 0.3, solution=2.0, samples=30, seed=4),
            sl.MinibatchNoise(2),
            sl.SGD(0.1),
        ),
    ),
}


@pytest.mark.parametrize(("words", "subject"), SUBJECTS.values(), ids=SUBJECTS.keys())
def test_problems_noises_and_optimizers_by_name(asked, words, subject):
    problem, noise, optimizer = words
    given, _ = asked("--problem", problem, "--noise", noise, "--optimizer", optimizer)
    assert described(*given) == described(*subject())


def test_a_covariance_by_its_file(asked, tmp_path):
    matrix = [[1.0, 0.5], [0.5, 2.0]]
    (tmp_path / "covariance.txt").write_text("1 0.5\n0.5 2\n")
    np.save(tmp_path / "covariance.npy", matrix)
    for name in ("covariance.txt", "covariance.npy"):
        noise = f"gaussian(covariance=@{tmp_path / name})"
        (_, law, _), _ = asked("--noise", noise, "--problem", "quadratic([1, 2])")
        np.testing.assert_array_equal(law.bind(TWO).matrix, matrix)


def test_options_of_the_run_by_name(asked):
    models = "optimizer, sde(integrator=euler, substeps=2, increments=rademacher), empirical(samples=4)"
    _, options = asked(
        *("--models", models, "--observables", "accuracy,norm", "--marginals", "3", "--record-every", "4"),
        *("--keep-paths", "1", "--keep", "x, v", "--times", "4,12", "--averages", "ema=0.9, late=6"),
        *("--chunk", "9", "--parameter-shards", "1", *SMALL),
    )
    assert options == {
        "models": [
            "optimizer",
            sl.ClosedForm("sde", integrator="euler", substeps=2, increments="rademacher"),
            sl.Empirical(samples=4),
        ],
        "steps": 12,
        "paths": 70,
        "seed": 0,
        "record": sl.Record(
            every=4,
            keep_paths=1,
            keep=["x", "v"],
            observables=["accuracy", "norm"],
            marginals=3,
            times=[4, 12],
            averages={"ema": 0.9, "late": 6},
        ),
        "execution": sl.Execution(chunk=9),
    }
    _, options = asked()
    sizes = {name: options[name] for name in ("models", "steps", "paths", "seed")}
    assert sizes == {"models": None, "steps": 1000, "paths": 1024, "seed": 0}


def test_an_optimizer_of_optax_by_name(asked):
    (_, _, optimizer), _ = asked("--optimizer", "optax:lion(lr=1e-3, b1=0.5)")
    assert (optimizer.name, optimizer.lr) == ("lion", 1e-3)
    (_, _, optimizer), _ = asked("--optimizer", "optax:sgd(momentum=0.5, nesterov=True)", "--lr", "0.2")
    x = np.ones(3, np.float32)
    updates, _ = optimizer.to_optax().update(x, optimizer.to_optax().init(x), x)
    np.testing.assert_allclose(updates, -0.2 * 1.5)
    (_, _, optimizer), _ = asked("--optimizer", "optax:contrib.muon")
    assert (optimizer.name, optimizer.lr) == ("contrib.muon", 0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--problem", "embedded-saddle(lam=2)", "--models", "optimizer, sde(integrator=euler)"),
        ("--optimizer", "optax:lion(lr=1e-3)", "--models", "optimizer, empirical(samples=4, accumulators=drift)"),
    ],
    ids=lambda o: o[1],
)
def test_what_is_given_by_name_runs(options):
    model = "empirical" if options[1].startswith("optax:") else "sde"
    assert f"\n{model}" in shell("compare", *options, *SMALL).stdout


def test_dry_run_runs_and_writes_nothing(tmp_path):
    out = tmp_path / "out"
    done = shell("compare", *SMALL, "--dry-run", "--out", str(out))
    assert re.fullmatch(r"This would take about \d+ s .* MiB of memory, .* MiB of results\.\n", done.stdout)
    assert not out.exists()


def test_sweep_needs_a_folder_for_what_it_writes_only_there(tmp_path):
    grid = ("sweep", "--optimizer", "sgd", "--over", "lr=0.1,0.2", "--dry-run", *SMALL)
    assert "This would take" in shell(*grid).stdout
    for option in (("--marginals", "2"), ("--observables", "norm"), ("--keep-paths", "1")):
        said = f"got {' '.join(option)} without --out; a sweep writes them only to the NetCDF file in that folder."
        assert said in shell(*grid, *option, expect=2).stderr
        assert "This would take" in shell(*grid, *option, "--out", str(tmp_path)).stdout
    assert "over: lr is given twice" in shell(*grid, "--over", "lr=0.3", expect=2).stderr


def test_info():
    found = json.loads(shell("info", "--json").stdout)
    assert len(found["devices"]) == len(jax.devices())
    ours = ["sgd", "signsgd", "rmspropw", "adamw", "momentum", "signum", "lion", "adagrad", "muon"]
    assert found["optimizers"] == ours
    assert "sdelens" in shell("info").stdout
    assert json.loads(shell("info", "wrappers", "--json").stdout).keys() == {"sam", "extragradient", "svrg"}
    assert "topic: got 'optimisers'; choose one of" in shell("info", "optimisers", expect=2).stderr


HELP = """
import sys
from sdelens.shell.app import app
app(["compare", "--help"], prog_name="sdelens", standalone_mode=False)
print(*[m for m in ("jax", "xarray", "pandas", "matplotlib") if m in sys.modules], file=sys.stderr)
"""


def test_help_documents_every_option_and_imports_no_jax():
    done = script(command=(sys.executable, "-c", HELP))
    assert done.stderr == "\n"
    groups = ("What is run", "Models", "How much is run", "What is recorded", "Where it runs", "Output")
    found = [done.stdout.index(f"─ {group} ─") for group in groups]
    assert found == sorted(found)
    for name in ("optimizer", "noise", "problem", "models", "steps", "record-every", "chunk", "out"):
        kind = "<(text|number|integer|path)>|TEXT|FLOAT|INTEGER|PATH"  # the second way is that of Typer 0.16
        assert re.search(rf"│ --{name} +({kind}) +\S", done.stdout), f"no help for {name}"
    assert re.search(r"│ --dry-run +Only estimate", done.stdout)
    assert "Steps between records; the start and the last step" in done.stdout  # as sl.Record says
    assert done.stdout.count("sdelens compare --") == 2  # examples


COMMANDS = [
    *("", "compare", "sweep", "order", "predict", "explore", "reproduce", "join", "info", "scale", "advise", "rescale"),
    *("diagnose", "forecast", "forecast fit", "forecast predict", "forecast advise"),
]


@pytest.mark.parametrize("command", [tuple(command.split()) for command in COMMANDS])
def test_help_fits_the_width_without_a_cut_sentence(command):
    assert_fits(lambda: shell(*command, "--help").stdout)
    said = shell(*command, "--help").stdout
    assert "…" not in said
    examples = 0 if command in ((), ("forecast",)) else 3 if command == ("info",) else 2
    assert said.count(f" sdelens {' '.join(command)} ") - 1 == examples or not examples


@pytest.mark.parametrize("topic", [(), ("optimizers",), ("problems",), ("rules",)])
def test_lists_of_names_fit_the_width(topic):
    assert_fits(lambda: shell("info", *topic).stdout)


def test_python_m_is_the_same_shell():
    assert script("--version", command=(sys.executable, "-m", "sdelens")).stdout.strip() == "0.1.0"


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line():
    subject = ("--optimizer", "sgd", "--lr", "10", "--problem", "quadratic([1, 4])", "--models", "optimizer")
    done = shell("compare", *subject, "--steps", "300", "--paths", "16")
    assert done.stderr.startswith("sdelens: warning: 16 of 16 paths of 'optimizer' diverged")
    assert done.stderr.count("\n") == 1
    assert ".py" not in done.stderr


def test_missing_devices_are_one_line():
    done = script("info", expect=2, JAX_PLATFORMS="cuda")
    assert "JAX_PLATFORMS='cuda'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_compiled_programs_are_kept_in_the_user_s_cache(tmp_path):
    command = ("compare", "--optimizer", "sgd", "--models", "optimizer", "--problem", "quadratic([1, 4])", *SMALL)
    environment = dict(XDG_CACHE_HOME=str(tmp_path), JAX_ENABLE_COMPILATION_CACHE="true")

    def programs():
        return {path.name for path in (tmp_path / "sdelens" / "programs").glob("*-cache")}

    first = script(*command, **environment)
    kept = programs()
    assert kept
    again = script(*command, **environment)
    assert again.stdout.rsplit(",", 1)[0] == first.stdout.rsplit(",", 1)[0]  # but for the seconds at the end
    assert programs() == kept  # all were found


@pytest.mark.parametrize(
    ("enabled", "folder", "keeps"), [(True, None, True), (True, "of-jax", False), (False, None, False)]
)
def test_programs_are_kept_unless_jax_has_a_folder_or_its_cache_is_off(monkeypatch, enabled, folder, keeps):
    kept, before = [], jax.config.jax_enable_compilation_cache
    monkeypatch.setattr(compilation, "cache_programs", lambda: kept.append(True))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    if folder is not None:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
    jax.config.update("jax_enable_compilation_cache", enabled)
    try:
        session._keep_programs()
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
    assert kept == [True] * keeps


def test_no_cache_turns_the_cache_of_jax_off_before_jax_starts(monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    assert "choose one of" in shell("--no-cache", "info", "nothing", expect=2).stderr
    assert os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "false"


WORKERS = ["minibatch", "dp", "distributed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--optimizer", "adan"), "optimizer: got 'adan'; choose one of"),
        (("--problem", "quadratik"), "Did you mean 'quadratic'?"),
        (("--noise", "cauchy"), "noise: got 'cauchy'; choose one of 'gaussian'"),
        (("--problem", "mlp(mnits)"), "dataset: got 'mnits'"),
        (("--problem", "cnn(heads=2)"), "problem: cnn: got 'heads'; choose one of 'dataset', 'subset'"),
        (("--problem", "cnn(mnist, data_dir=nowhere)"), "data_dir: 'nowhere' does not exist; give the folder"),
        (("--lr", "-1"), "lr: got -1.0"),
        (("--optimizer", "sgd(b1=0.9)"), "optimizer: sgd: got 'b1'; choose one of 'lr', 'weight_decay'"),
        (
            ("--optimizer", "adamw(betas=(0.9,0.99))"),
            "adamw: got 'betas'; write decays one by one, as in b1=0.9, b2=0.99",
        ),
        (("--optimizer", "rmspropw(beta=0.9)"), "rmspropw: got 'beta'; write decays one by one, as in b2=0.99"),
        (("--optimizer", "optax:adamw(betas=(0.9,0.99))"), "optimizer: adamw: got 'betas'; write decays one by one"),
        (("--optimizer", "sgd(lr=0.1)", "--lr", "0.2"), "lr: got 0.1 and 0.2; give one learning rate"),
        (("--optimizer", "sgd(lr=0.1"), "the brackets in 'sgd(lr=0.1' do not match"),
        (("--optimizer", "sgd, adamw"), "optimizer: got 'sgd, adamw'; give one"),
        (("--optimizer", "sgd(lr=0.1, lr=0.2)"), "optimizer: sgd has lr twice"),
        (("--optimizer", "optax:lyon"), "Did you mean 'lion'?"),
        (("--optimizer", "optax:sgd(momentm=1)"), "optimizer: sgd: got 'momentm'"),
        (("--optimizer", "optax:sgd(0.1, 0.9)"), "optimizer: sgd has 0.9 without a name"),
        (("--optimizer", "optax:sgd(nesterov=yes)"), "optimizer: got 'yes'; write true or false"),
        (("--optimizer", "momentum(nesterov=3)"), "nesterov: got 3; give true or false"),
        (("--optimizer", "adamw(lr=abc)"), "lr: got 'abc'; give a number"),
        (("--optimizer", "adamw(b1=none)"), "b1: got 'none'; give a number"),
        (("--optimizer", "adamw(b1=cosine(10))"), "b1: got cosine(...); give a number"),
        (("--optimizer", "optax:adamw(b1=x)"), "adamw: b1: got 'x'; give a number"),
        (("--optimizer", "optax:sgd(lr=cosine(10))"), "optimizer: sgd takes numbers and words; for lr=cosine(...) use"),
        (("--optimizer", "optax:contrib.schedule_free"), "optax:contrib.schedule_free needs base_optimizer;"),
        (("--problem", "quadratic(curvature=[1, x])"), "curvature: "),
        (("--models", "optimizer,sdee"), "Did you mean 'sde'?"),
        (("--models", "sde(substep=2)"), "models: sde: got 'substep'; choose one of"),
        (("--models", "sde(2)"), "models: sde has 2; name its options"),
        (("--models", "optimizer(substeps=2)"), "models: got optimizer(substeps); write its options in --optimizer"),
        (("--models", "sde(increments=poisson)"), "increments: got 'poisson'"),
        (("--noise", "gaussian([1, 2])"), "scale: got shape (2,); the problem has 5 coordinates"),
        (("--steps", "0"), "steps: got 0"),
        (("--noise", "student-t"), "noise: student-t needs df; write student-t(df=...)"),
        (("--noise", "gaussian(df=3)"), "noise: gaussian: got 'df'; choose one of 'scale', 'covariance'"),
        (("--noise", "student-t(df=2)"), "student-t noise has no finite variance"),
        (("--noise", "gaussian +"), "noise: got 'gaussian +'; write something on each side of every '+'"),
        (("--noise", "gaussian(covariance=@nowhere.npy)"), "covariance: there is no file 'nowhere.npy'"),
        (("--noise", "gaussian(1, covariance=[[1]])"), "covariance"),
        (("--noise", ""), "noise: got ''; give one, as name or name(key=value)"),
        (("--noise", "distributed(gaussian, workers=2, compression=top-k(1))"), "compression: got 'top-k'; choose one"),
        (("--noise", "distributed(gaussian)"), "noise: distributed needs workers; write distributed(workers=...)"),
        (("--noise", "distributed(3, 2)"), "noise: got 3; give a noise law, for example gaussian(scale=1)"),
        (("--noise", "distributed(gaussian, 2, 3, 4)"), "has 4 values without a name and takes at most 3; name them"),
        (("--noise", "distributed(gaussian, 2, workers=3)"), "distributed has workers twice, by its place and by its"),
        (("--optimizer", "adamw(schedule=cosine)"), "schedule: cosine needs steps; write cosine(steps=...)"),
        (("--optimizer", "adamw(schedule=cosine(1) + cosine(2))"), "give one schedule. Only noise laws can be added"),
        (("--devices", "0"), "devices: got 0"),
        (("--lr", "0.1", "--lr", "0.2"), "sdelens: lr: got 0.1 and 0.2; give it once"),
        (("--lr=0.1", "--lr=0.1"), "sdelens: lr: got 0.1 and 0.1; give it once"),
        (("--dry-run", "--dry-run"), "sdelens: dry-run: was given 2 times; give it once"),
        (("--lr", "x"), "sdelens: lr: got 'x'; give a number"),
        (("--steps", "1.5"), "sdelens: steps: got '1.5'; give an integer, for example 100"),
        (("--resume",), "resume: got --resume without --out; checkpoints are kept in that folder. Add --out FOLDER"),
        (("--share", "0/2"), "share: got --share 0/2 without --out; each share is written to a file in that folder."),
        (("--share", "2"), "share: got '2'; give i/n, for example 0/4"),
        (("--share", "2/2", "--out", "x"), "share: got 2 of 2; the index of a share must be from 0 to 1"),
        (("--share", "0/2", "--out", "x", "--theory"), "theory: got --theory with --share, but a share lacks paths"),
        (("--out", "/proc/sdelens"), "out: '/proc/sdelens' cannot be written"),
        (("--out", __file__), "is a file; give a folder"),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, tuple) else "",
)
def test_errors_are_one_line_with_the_remedy(arguments, message):
    done = shell("compare", *arguments, expect=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not re.search("argument:|positional|keyword|Error|NoneType|\\bstr\\b|\\bint\\b|\\bfloat\\b", done.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("explore --no-open --result nowhere.nc", "result: there is no file 'nowhere.nc'; give one that was"),
        ("explore --no-open --out /nowhere/page.html", "out: the folder '/nowhere' does not exist; create it first"),
        (f"explore --no-open --out {'a' * 300}", f"out: '{'a' * 300}' cannot be written (File name too long); give"),
        ("advise 100 --batch-size 2 --plot /nowhere/a.png", "plot: the folder '/nowhere' does not exist"),
        ("explore --problem quadratic(curvature=[1,2,3],start=1) --no-open", "choose them, for example 0 and 2"),
        (
            "scale adamw --batch 256 --to 4096 --lr 3e-4 --b2 .95",
            "Alternatives: momentum 'second-moment' (only b2 changes",
        ),
        ("diagnose nowhere.pt", "checkpoints: 'nowhere.pt' does not exist; give the path of a checkpoint"),
        ("diagnose . --earlier nowhere.pt", "earlier: 'nowhere.pt' does not exist"),
        ("forecast fit", "logs: missing; give one per run, or a table of runs by --runs"),
        ("forecast fit nowhere.csv --optimizer sgd(0.1)", "logs: there is no file 'nowhere.csv'"),
        ("forecast predict nowhere.json --optimizer sgd(0.1) --steps 9", "forecast: there is no file 'nowhere.json'"),
    ],
)
def test_errors_name_the_arguments_of_the_shell(arguments, message):
    assert message in shell(*arguments.split(), expect=2).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("rescale nowhere.pt --ratio 4 --out new.pt", "checkpoint: 'nowhere.pt' does not exist"),
        ("rescale old.pt --ratio 0 --out new.pt", "ratio: got 0.0; it must be greater than 0"),
        ("rescale old.pt --ratio 4 --out old.pt", "out: 'old.pt' exists already"),
        ("rescale old.pt --ratio 4 --out new.pt", "checkpoint: reading a checkpoint needs PyTorch; install it with"),
        (
            "diagnose old.pt",
            "checkpoints: reading a checkpoint needs PyTorch; install it with pip install 'sdelens[torch]'",
        ),
    ],
)
def test_without_pytorch_arguments_are_checked_and_the_message_says_what_to_install(
    arguments, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "old.pt").write_bytes(b"PK")
    assert message in shell(*arguments.split(), expect=2).stderr


@pytest.mark.parametrize(
    ("arguments", "of_this_kind"),
    [
        (("--noise", "distributed(gausian, 2)"), ["gaussian", "student-t", "laplace", "uniform", *WORKERS]),
        (("--noise", "distributed(gaussian, 2, randomk(1))"), ["random-k", "quantisation", "majority-vote"]),
        (("--optimizer", "adamw(schedule=cosin(9))"), ["cosine", "polynomial", "warmup", "interpolated"]),
        (("--optimizer", "adamw(schedule=warmup(9, cosin(9)))"), ["cosine", "polynomial", "warmup", "interpolated"]),
    ],
    ids=lambda a: a[1] if isinstance(a, tuple) else "",
)
def test_a_misspelt_name_lists_names_of_its_kind_alone(arguments, of_this_kind):
    said = shell("compare", *arguments, expect=2).stderr
    listed = re.search("choose one of (.*?)\\. Did you mean '(.*)'", said)
    assert listed[1].replace("'", "").split(", ") == of_this_kind
    assert listed[2] == of_this_kind[0]


@pytest.mark.slow
def test_order_prints_the_slopes_and_writes_the_folder(tmp_path):
    subject = ("--optimizer", "signsgd", "--problem", "quadratic([1, 2], start=1)")
    options = ("--lrs", "0.2,0.1,0.05", "--horizon", "0.8", "--out", str(tmp_path / "o"))
    done = shell("order", *subject, *options)
    assert re.search(r"sde +resolved +[01]\.\d+ ", done.stdout)
    assert {p.name for p in (tmp_path / "o").iterdir()} == {
        f"order-signsgd-quadratic.{s}" for s in ("csv", "png", "pdf")
    }
    study = sl.weak_order(sl.Quadratic([1.0, 2.0], 1.0), sl.GaussianNoise(1.0), sl.SignSGD(0.01), [0.2, 0.1, 0.05], 0.8)
    assert f"{study.slope:.3f}" in done.stdout
    again = shell("order", *subject, *options, expect=2)
    assert "holds results already; give another folder or --overwrite" in again.stderr
    refused = shell("order", *subject, "--lrs", "0.1,0.2,0.4", expect=2)
    assert "lrs: got [0.1, 0.2, 0.4]; give decreasing learning rates" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_noise_and_schedules_by_name(tmp_path):
    matrix = tmp_path / "covariance.txt"
    matrix.write_text("1 0.5\n0.5 2\n")
    two = ("--problem", "quadratic([1, 2])", *SMALL)
    for name, noise, law in (
        ("signsgd", "student-t(df=1)", sl.StudentTNoise(1.0, 1)),
        ("sgd", f"gaussian(covariance=@{matrix})", sl.GaussianNoise(covariance=[[1.0, 0.5], [0.5, 2.0]])),
    ):
        out = tmp_path / law.bind(sl.Quadratic([1.0, 2.0])).describe()["name"]
        optimizer = f"{name}(lr=0.1, schedule=warmup(2, cosine(10, end=0.1)))"
        models = "optimizer, sde(increments=rademacher)"
        shell("compare", "--optimizer", optimizer, "--noise", noise, "--models", models, *two, "--out", str(out))
        spec = {"signsgd": sl.SignSGD, "sgd": sl.SGD}[name](0.1, schedule=sl.Warmup(2, sl.Cosine(10, 0.1)))
        both = ["optimizer", sl.ClosedForm("sde", increments="rademacher")]
        ours = sl.compare(sl.Quadratic([1.0, 2.0]), law, spec, both, steps=12, paths=70)
        theirs = sl.load(next(out.glob("*.nc")))
        assert theirs.info["optimizer"] == ours.info["optimizer"]
        assert abs(theirs.dataset.loss_mean - ours.dataset.loss_mean).max() < 1e-6


@pytest.mark.study
def test_the_demo_runs_at_small_size(tmp_path):
    demo = (sys.executable, str(ROOT / "examples" / "demo.py"), "--small", "--out", str(tmp_path / "demo"))
    done = script(command=demo)
    assert len(re.findall(r"^(quadratic|MLP) ", done.stdout, re.M)) == 12
    page = (tmp_path / "demo" / "index.html").read_text()
    assert page.count("<figure>") == 8
    assert len(list((tmp_path / "demo").glob("*.nc"))) == 8


@pytest.mark.slow
def test_the_demo_runs_with_two_of_its_eight_comparisons(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "cpu_count", lambda: len(jax.devices()))  # it asks for as many devices
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    monkeypatch.setattr(demo, "ON_QUADRATIC", demo.ON_QUADRATIC[-1:])
    monkeypatch.setattr(demo, "ON_NETWORK", demo.ON_NETWORK[:1])
    monkeypatch.setattr(sys, "argv", ["demo.py", "--small", "--out", str(tmp_path / "demo")])
    demo.main()
    printed = capsys.readouterr().out
    rows = [" ".join(row) for row in re.findall(r"^(quadratic|MLP) +(\w+) +(earlier SDE|SDE) ", printed, re.M)]
    assert rows == ["quadratic AdamW SDE", "quadratic AdamW earlier SDE", "MLP SGD SDE"]
    assert (tmp_path / "demo" / "index.html").read_text().count("<figure>") == 2
    assert {p.name for p in (tmp_path / "demo").glob("*.nc")} == {"adamw-quadratic.nc", "sgd-mlp.nc"}


def test_predict_prints_the_overview_and_writes_the_folder(tmp_path):
    subject = ("--optimizer", "signsgd", "--lr", "0.05", "--problem", "quadratic([1, 2])", "--steps", "60")
    out = tmp_path / "p"
    done = shell("predict", *subject, "--record-every", "10", "--out", str(out))
    found = sl.theory.overview(
        sl.Quadratic([1.0, 2.0]), sl.GaussianNoise(1.0), sl.SignSGD(0.05), steps=60, record_every=10
    )
    assert done.stdout.startswith(str(found))
    assert {p.name for p in out.iterdir()} == {"index.html", *(f"signsgd-quadratic.{s}" for s in ("nc", "png", "pdf"))}
    saved = sl.load(out / "signsgd-quadratic.nc")
    assert saved.models == ["prediction"]
    assert "prediction" in (out / "index.html").read_text()
    again = shell("predict", *subject, "--out", str(out), expect=2)
    assert "holds results already" in again.stderr
    assert "This would take about" in shell("predict", *subject, "--dry-run").stdout
    for arguments, message in (
        (("--problem", "rosenbrock"), "the theory needs a quadratic loss"),
        (("--noise", "student-t(df=2)", "--optimizer", "sgd"), "no finite variance"),
        (("--problem", "quadratic(samples=9)"), "problem: quadratic: got 'samples'"),
    ):
        refused = shell("predict", *arguments, expect=2)
        assert message in refused.stderr
        assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_compare_with_theory_and_a_logged_curve(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("time,Loss,step\n0,7.5,0\n1,3.0,6\n2,1.0,12\n")
    options = ("--optimizer", "sgd", "--lr", "0.1", "--theory", "--curve", str(log), "--out", str(tmp_path / "o"))
    done = shell("compare", *options, *SMALL)
    assert re.search(r"^prediction +[0-9.]+ ", done.stdout, re.M)
    assert re.search(r"^logged +1 ", done.stdout, re.M)
    saved = sl.load(next((tmp_path / "o").glob("*.nc")))
    assert saved.models == ["optimizer", "sde", "prediction", "logged"]
    assert list(saved.dataset.bound.values) == ["bound"]
    done = shell("compare", "--problem", "rosenbrock", "--optimizer", "sgd", "--lr", "0.001", "--theory", *SMALL)
    assert "No prediction: problem: got Rosenbrock" in done.stdout
    for text, message in (
        ("a,b\n1,2\n", "no column of the file bad.csv has a usual name of a loss"),
        ("1,2\n2,x\n", "row 2 of column"),
        ("", "is empty"),
        (None, "bad.csv"),
    ):
        path = tmp_path / "bad.csv"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        refused = shell("compare", "--optimizer", "sgd", "--curve", str(path), *SMALL, expect=2)
        assert message in refused.stderr


@pytest.mark.slow
def test_mini_batches_observables_and_marginals_by_name(tmp_path):
    network = ("--problem", "mlp(digits, subset=20, width=4, depth=1, gradient_dtype=bfloat16)")
    noise = ("--noise", "minibatch(5, covariance=diagonal, refresh=2)")
    run = ("--steps", "6", "--paths", "16", "--observables", "accuracy,norm", "--marginals", "3")
    out = tmp_path / "out"
    done = shell("compare", *network, *noise, *run, "--out", str(out))
    assert "accuracy" in done.stdout
    assert "W₁" in done.stdout
    subject = sl.network("mlp", "digits", subset=20, width=4, depth=1, gradient_dtype="bfloat16")
    same = sl.MinibatchNoise(5, covariance="diagonal", refresh=2)
    record = sl.Record(observables=["accuracy", "norm"], marginals=3)
    found = sl.compare(subject, same, sl.AdamW(0.01), steps=6, paths=16, record=record)
    saved = sl.load(next(out.glob("*.nc")))
    assert saved.dataset.equals(found.dataset)
    page = (out / "index.html").read_text()
    assert next(out.glob("*-accuracy.png")).name in page
    assert "Observables" in page


@pytest.mark.slow
def test_linear_regression_by_name():
    common = ("--noise", "minibatch(2)", "--optimizer", "sgd", "--lr", "0.1", "--steps", "20")
    for more, samples in (("", None), (", samples=30, seed=4", 30)):
        done = shell("predict", "--problem", f"{REGRESSION}{more})", *common)
        subject = sl.LinearRegression([1.0, 0.5], 0.3, solution=2.0, samples=samples, seed=4)
        found = sl.theory.overview(subject, sl.MinibatchNoise(2), sl.SGD(0.1), steps=20)
        assert done.stdout.strip() == str(found).strip()
    refused = shell("predict", "--problem", f"{REGRESSION})", "--noise", "minibatch", expect=2)
    assert "minibatch needs batch_size; write minibatch(batch_size=...)" in refused.stderr
    refused = shell("predict", "--noise", "minibatch(2)", expect=2)
    assert "mini-batches need a problem with examples" in refused.stderr


def test_sweep_prints_its_table_and_writes_the_folder(tmp_path):
    out = tmp_path / "swept"
    options = (
        "--optimizer",
        "sgd",
        "--models",
        "optimizer,sde",
        "--over",
        "noise.scale=1,2",
        "--marginals",
        "2",
        *SMALL,
    )
    done = shell("sweep", *options, "--over", "lr=0.1,0.2", "--out", str(out), "--resume")
    assert "Best of 'optimizer'" in done.stdout
    name = "sweep-sgd-quadratic"
    figures = {f"{name}-{q}.{s}" for q in ("late-loss", "error") for s in ("png", "pdf")}
    assert {p.name for p in out.iterdir()} == {"index.html", f"{name}.nc", f"{name}.csv", *figures}
    found = sl.load(out / f"{name}.nc")
    assert list(found.over) == ["noise.scale", "lr"]
    assert "law_x" in found.dataset
    assert str(found).splitlines()[:8] == done.stdout.splitlines()[:8]
    schedules = "schedule=cosine(10),warmup(2, cosine(10))"
    assert "2 schedule" in shell("sweep", "--optimizer", "sgd", "--over", schedules, *SMALL, "--models", "sde").stdout
    refused = shell("sweep", "--over", "lr=1,2", "--quantity", "losss", "--out", str(tmp_path / "none"), expect=2)
    assert "quantity: got 'losss'; choose one of 'late_loss'" in refused.stderr
    assert not (tmp_path / "none").exists()
    assert "give KEY=VALUE" in shell("sweep", "--over", "lr", expect=2).stderr


@pytest.mark.parametrize(
    ("encoding", "written"), [("latin-1", "eta <= ½ ± 1"), ("cp437", "eta ≤ ½ ± 1"), ("utf-8", "η ≤ ½ ± 1")]
)
def test_output_never_fails_on_a_character(monkeypatch, encoding, written):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    protect_streams()
    print("η ≤ ½ ± 1", end="", flush=True)
    assert stream.buffer.getvalue() == written.encode(encoding)
