# Each target does all its own set-up in .venv; the machine needs python3 >= 3.10, make and a C++ compiler.
#
#   make demo    train on character images with three losses and print the retrieval table
#   make test    lint the Python code and run the whole test suite
#   make test-clients  the tests of fastpair.patch, with the libraries that it patches
#   make gpu     on a machine with a GPU, with its own PyTorch, ten minutes: build, smoke, tests and benchmarks, or STAGE alone
#   make sanitize  on such a machine: the CUDA kernels under compute-sanitizer's memcheck and racecheck
#   make sanitize-cpu  the CPU kernels under the compiler's sanitizers, of addresses, undefined behaviour and threads
#   make mutants  plant deliberate faults into a copy, one by one: each has to be caught by the suite; takes hours
#   make lint    ruff and clang-format, without changing a file
#   make bench   measure time and memory against PyTorch
#   make docs    the site, into build/site: built strictly, with its pictures and tables
#   make wheels  a wheel for each of PYTHONS and the sdist, checked, into dist/; with the CUDA kernels where nvcc is
#   make test-wheels  the wheels of dist/ in environments without a compiler, under each of TORCHES
#   make clean   remove .venv, .venv-clients and everything that was built
#
# PYTHON=python3.12 chooses the interpreter that .venv is made from.

PYTHON ?= python3
VENV := .venv
CLIENTS := .venv-clients
GPU_RESULTS ?= benchmarks/results
STAGE ?= build smoke tests benchmarks

# A wheel serves one Python and every torch from 2.10 on; the newest is what pip chooses.
PYTHONS ?= $(PYTHON)
TORCHES ?= 2.10.0 2.11.0 newest
WHEELS ?= dist/*.whl
# Empty: the CUDA kernels where nvcc is found; 0: a wheel for the CPU; 1: an error where they cannot be built.
WHEEL_CUDA ?=

# The compiler driver of torch looks for ninja on the PATH.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export NO_MKDOCS_2_WARNING := 1
# Without a C++ compiler the set-up stops and says so, rather than go on with the reference path alone.
export FASTPAIR_BUILD_EXT ?= 1
# The CUDA kernels take longer to compile than all the rest: not where no GPU would run them.
export FASTPAIR_BUILD_CUDA ?= $(if $(wildcard /dev/nvidia0),,0)

CXX_SOURCES := $(wildcard $(foreach ending,cpp h cu,csrc/*.$(ending) csrc/*/*.$(ending) csrc/*/*/*.$(ending)))
# The folders stand for files that were added or removed.
BUILD_INPUTS := setup.py pyproject.toml $(CXX_SOURCES) $(patsubst %/,%,$(sort $(dir $(CXX_SOURCES))))

, := ,

# Tests that take every phase of every kernel at small shapes.
SANITIZED := test_loss_and_gradients or test_half_precision or test_pairwise_distance

# Six losses, of each kind one, in every dtype on both backends.
SMOKE := test_dtypes and 257 and (contrastive-cosine or supcon-cosine or multi_similarity-cosine or triplet_margin-unit_euclidean or siglip or linear_cross_entropy) and not refs and not smooth

# Those that compile, start processes or read what is shipped, which take as long as all other tests on a CPU.
PACKAGE_TESTS := tests/clients $(foreach of,custom determinism distributed documentation headers numbers packaging robustness \
  site,tests/test_$(of).py)
# Its plugin imports all of it at the end of tests that have nothing of it, a second each time.
without_hypothesis := -p no:hypothesispytest

.PHONY: demo test test-package test-cpu test-gpu test-interpreted test-examples test-clients mutants gpu gpu-build gpu-smoke gpu-tests gpu-benchmarks sanitize sanitize-cpu lint bench docs wheels test-wheels clean

demo: $(VENV)/installed
	$(VENV)/bin/python examples/train_dml.py --dataset glyphs --loss ce,contrastive,spce --epochs 4 --evaluate-every 2 \
	  --output runs/demo-$$(date +%Y%m%d-%H%M%S)

test: $(VENV)/installed $(VENV)/docs
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m fastpair
	$(MAKE) --jobs=2 --output-sync=target test-package test-cpu test-gpu test-examples test-interpreted

# Side by side, a core each, the longest first: threads that wait for one that has no core spin. Tests of threads ask for
# theirs.
test-package:
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -q $(without_hypothesis) $(PACKAGE_TESTS)

test-cpu:
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -q tests $(PACKAGE_TESTS:%=--ignore %) --ignore tests/gpu --ignore tests/examples

# And that benchmarks run.
test-examples:
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q $(without_hypothesis) tests/examples benchmarks --quick --benchmark-disable

test-gpu:
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -q $(without_hypothesis) tests/gpu

test-interpreted:
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(VENV)/bin/pytest -q $(without_hypothesis) tests/gpu

# Models are made of configurations: nothing is downloaded.
test-clients: $(CLIENTS)/installed
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(CLIENTS)/bin/python -m pytest -q tests/clients
	$(CLIENTS)/bin/python -m benchmarks.clients --quick

# MUTANTS='--only "tile|stride" --pytest "-n 2"': see tests/mutants/__main__.py.
mutants: $(VENV)/installed
	PYTHONPATH=tests $(VENV)/bin/python -m mutants $(MUTANTS)

# With the PyTorch that PYTHON has, which has to match the driver. A stage ends after its seconds at the latest, its output
# is in GPU_RESULTS/gpu-<stage>.log; that one failed does not keep the next from running.
gpu:
	@failed=; for stage in $(STAGE); do $(MAKE) --no-print-directory gpu-$$stage || failed="$$failed $$stage"; done; \
	  test -z "$$failed" || { echo "failed:$$failed; see $(GPU_RESULTS)"; exit 1; }

staged = @mkdir -p $(GPU_RESULTS); echo "== $(1), at most $(2) s"; \
  timeout --signal INT --kill-after 10 $(2) $(3) > $(GPU_RESULTS)/gpu-$(1).log 2>&1; \
  status=$$?; tail -n 25 $(GPU_RESULTS)/gpu-$(1).log; exit $$status
on_gpu = env OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n 16 -p no:cacheprovider --tb=short --durations=12

gpu-build:
	$(call staged,build,200,env FASTPAIR_BUILD_CUDA=1 TORCH_CUDA_ARCH_LIST=$$($(PYTHON) -c \
	  'import torch; print("%d.%d" % torch.cuda.get_device_capability())') $(PYTHON) setup.py -q build_ext --inplace)

gpu-smoke:
	$(call staged,smoke,90,$(on_gpu) tests/gpu/test_gpu.py -k "$(SMOKE)")

gpu-tests:
	$(call staged,tests,240,$(on_gpu) tests/gpu/test_gpu.py tests/gpu/test_kernels.py tests/gpu/test_lengths.py)

gpu-benchmarks:
	$(call staged,benchmarks,260,$(PYTHON) -m benchmarks.gpu --budget 200 --output $(GPU_RESULTS))

# The CUDA kernels under the tools that find wrong addresses and races; slow.
sanitize:
	compute-sanitizer --tool memcheck --error-exitcode 1 $(PYTHON) -m pytest -q tests/gpu/test_kernels.py -k "cuda and ($(SANITIZED))"
	compute-sanitizer --tool racecheck --error-exitcode 1 $(PYTHON) -m pytest -q tests/gpu/test_kernels.py -k "cuda and ($(SANITIZED))"

# build/<kind>/lib holds the package with an extension that is built for the sanitizers -fsanitize=<flags>, which have to
# be loaded first of all; of Python's and torch's own memory they say nothing. Threads in one address space layout alone,
# with the SIMD level that the machine has.
preloaded = LD_PRELOAD="$$($(CXX) -print-file-name=$(1)) $$($(CXX) -print-file-name=libstdc++.so)"
built_for = rm -rf build/$(1) && FASTPAIR_BUILD_CUDA=0 CFLAGS="-fsanitize=$(2)" LDFLAGS="-fsanitize=$(2)" \
  $(VENV)/bin/python setup.py -q build --build-base build/$(1) --build-lib build/$(1)/lib
SANITIZED_CPU := tests/sanitized.py tests/test_robustness.py::test_misaligned_tensors

sanitize-cpu: $(VENV)/requirements
	$(call built_for,address,address$(,)undefined)
	for level in baseline avx2 avx512; do \
	  FASTPAIR_SIMD=$$level ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	    PYTHONPATH=build/address/lib $(call preloaded,libasan.so) $(VENV)/bin/pytest -q $(SANITIZED_CPU) || exit 1; \
	done
	$(call built_for,thread,thread)
	TSAN_OPTIONS=ignore_noninstrumented_modules=1 PYTHONPATH=build/thread/lib $(call preloaded,libtsan.so) \
	  setarch -R $(VENV)/bin/pytest -q -s tests/sanitized.py

lint: $(VENV)/requirements
	$(VENV)/bin/ruff check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_SOURCES) $(wildcard tests/robustness/*.cpp tests/robustness/*.h tests/gpu/emulator/*.* tests/gpu/emulator/*/*.*)

docs: $(VENV)/installed $(VENV)/docs
	$(VENV)/bin/python -m mkdocs build

bench: $(VENV)/installed
	$(VENV)/bin/python -m benchmarks.compare

# FASTPAIR_BUILD_CUDA is set above, for installations in place.
wheels: $(foreach python,$(PYTHONS),build/wheels/$(notdir $(python))/installed)
	rm -rf dist build/wheels/unrepaired build/lib*
	for python in $(notdir $(PYTHONS)); do \
	  FASTPAIR_BUILD_CUDA=$(WHEEL_CUDA) PATH="$(CURDIR)/build/wheels/$$python/bin:$$PATH" \
	    build/wheels/$$python/bin/python -m build --wheel --no-isolation --outdir build/wheels/unrepaired || exit 1; \
	done
	build/wheels/$(notdir $(firstword $(PYTHONS)))/bin/python -m build --sdist --no-isolation
	for wheel in build/wheels/unrepaired/*.whl; do $(of_wheels)auditwheel repair $(TORCH_LIBRARIES) --wheel-dir dist $$wheel || exit 1; done
	$(of_wheels)twine check --strict dist/*

of_wheels = PATH="$(CURDIR)/build/wheels/$(notdir $(firstword $(PYTHONS)))/bin:$$PATH" 
# They come with torch, which is imported before the extensions.
TORCH_LIBRARIES := $(foreach name,c10 c10_cuda torch torch_cpu torch_cuda,--exclude lib$(name).so)

# Named after the Python that it is made from.
build/wheels/%/installed: requirements/wheels.txt requirements/dev.txt
	$(filter %$*,$(PYTHONS)) -m venv $(@D)
	$(@D)/bin/pip install --quiet -r $< -c requirements/dev.txt
	@touch $@

# No more on the PATH than the environment's own programs: no compiler.
test-wheels:
	for wheel in $(WHEELS); do for torch in $(TORCHES); do \
	  python=$$(echo $$wheel | sed -E 's/.*-cp3([0-9]+)-.*/python3.\1/'); \
	  wanted=torch; test $$torch = newest || wanted=torch==$$torch; \
	  rm -rf build/wheels/smoke; $$python -m venv build/wheels/smoke && build/wheels/smoke/bin/pip install --quiet $$wanted $$wheel && \
	  env -i PATH="$(CURDIR)/build/wheels/smoke/bin" build/wheels/smoke/bin/python tests/smoke.py || exit 1; \
	done; done

clean:
	rm -rf $(VENV) $(CLIENTS) build dist *.egg-info fastpair/_C*.so .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/requirements: requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastpair needs Python 3.10 or newer, but $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv --clear $(VENV)
	@echo "Installing the pinned requirements, once: PyTorch is a large download"
	@# Python compiles what it imports: all of PyTorch would take twenty seconds.
	$(VENV)/bin/pip install --quiet --no-compile -r $<
	@touch $@

$(VENV)/docs: requirements/docs.txt $(VENV)/requirements
	$(VENV)/bin/pip install --quiet -r $< -c requirements/dev.txt
	@touch $@

# Editable, so that Python changes need no new install. Any change of the C++ code builds the extension from nothing,
# because an editable install keeps no object files: a stale build cannot be picked up.
$(VENV)/installed: $(VENV)/requirements $(BUILD_INPUTS)
	rm -f fastpair/_C*.so
	$(VENV)/bin/pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

# On top of .venv, whose packages stay as they are.
$(CLIENTS)/installed: requirements/clients.txt $(VENV)/installed
	$(VENV)/bin/python -m venv --clear $(CLIENTS)
	$(VENV)/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$($(CLIENTS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/of_venv.pth"
	$(CLIENTS)/bin/pip install --quiet -r $< -c requirements/dev.txt
	@touch $@
