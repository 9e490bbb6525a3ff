# Every target makes .venv first; it needs Python 3.11, git, make and a package index.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PROFILE ?= default
UV = 0.13.8
LOADED = librosa.core.audio, librosa.core.pitch, librosa.feature.spectral, librosa.util.utils, matplotlib.figure, open_clip, papermill, torch._dynamo, transformers.models.t5.modeling_t5, cop_repro.evaluation.evaluate, cop_repro.training.stages
# `make setup CPU=1` leaves out what only a GPU needs; later calls of make see it by the file.
CPU_LOCK := $(if $(CPU),.venv/cpu.lock,$(wildcard .venv/cpu.lock))
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONWARNINGS ?= ignore::DeprecationWarning,ignore::FutureWarning
# Some machines forbid Python to keep compiled modules; dozens of processes would then compile torch anew, seconds each time.
export PYTHONDONTWRITEBYTECODE =
# Notebooks import torch before the package, which sets this for every other entry.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup repro test test-cluster test-course test-fuzz test-crash smoke lab docs slides demo test-processors smoke-processors lock export clean bench release-assets

# numba compiles parts of librosa when they are first imported and keeps them: two processes that do so at once can leave a cache that crashes.
# The other modules are those that `cop perform` and the stages load: where Python may not keep compiled modules, `cop` reads these.
setup: .venv/ready data/manifest.json

.venv/ready: requirements.lock settings.ini setup.py pyproject.toml $(CPU_LOCK)
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
ifneq ($(CPU_LOCK),)
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --require-hashes -r $(CPU_LOCK)
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --torch-backend cpu $$(awk '/^torch(audio|vision)?==/ {print $$1}' requirements.lock)
else
	.venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes -r requirements.lock
endif
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
	.venv/bin/python -c "import $(LOADED)"
	.venv/bin/cop --version
	touch $@

# The lock without the libraries of GPUs and without PyTorch, whose CPU build lies in an index of its own.
.venv/cpu.lock: requirements.lock
	mkdir -p .venv
	awk '/^[A-Za-z0-9]/ {keep = !/^(nvidia-|cuda-|triton=|torch(audio|vision)?=)/} keep' $< > $@

data/manifest.json: data.dvc | .venv/ready
	dvc pull --quiet data.dvc
	test -f $@ && touch $@

# `setup` has pulled the data; with --pull, DVC would take uncached outputs for restored and not make them.
repro: setup
ifeq ($(PROFILE),default)
	rm -rf .venv/committed && mkdir .venv/committed
	git archive HEAD reports/results.json reports/verdicts.json | tar -x -C .venv/committed || cp -r reports .venv/committed/reports
	dvc repro
	cop compare .venv/committed/reports reports
else
	cop profile $(PROFILE)
endif

test: setup
	OMP_NUM_THREADS=1 pytest -n 2 --dist worksteal

# Kills a process of a training, and a worker that fills shards; takes two minutes on a busy machine.
test-cluster: setup
	OMP_NUM_THREADS=1 pytest -m cluster tests/test_launch.py tests/test_cluster.py

# Every lesson of the course, with its exercises solved.
test-course: setup
	OMP_NUM_THREADS=1 pytest -n 2 -m course tests/test_course.py

# Ten thousand damaged files for everything that reads files of users.
test-fuzz: setup
	OMP_NUM_THREADS=1 pytest -n 2 -m fuzz tests/test_fuzz.py

# Every stage under every fault (docs/crashes.md).
test-crash: setup
	OMP_NUM_THREADS=1 pytest -m crash tests/test_crash.py

# The smoke run again with other instructions and another number of threads, as another machine adds.
test-processors: smoke smoke-processors
	cop compare work/profiles/smoke/reports work/profiles/smoke-avx2/reports

smoke: setup
	cop profile smoke

# Only what is compared: the stages before the report.
smoke-processors: setup
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 cop profile smoke report --as smoke-avx2 -S threads=1

demo: setup
	cop demo

lab: setup
	jupyter lab --notebook-dir=nbs $(ARGS)

docs: setup
	cop docs

# The lecture of the course, one file that needs no network.
slides: setup
	cop slides

bench: setup
	cop speed

export: .venv/ready
	nbdev_clean
	nbdev_export
	cop fingerprints

release-assets: setup
	cop release

lock: | .venv/ready
	cop lock > .venv/requirements.in
	.venv/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header --no-emit-index-url .venv/requirements.in -o requirements.lock

clean:
	rm -rf work runs models features _docs
