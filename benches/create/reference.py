"""Runs the reference implementation of MEMIT on a model folder, for `cargo bench --bench create`.

    python reference.py CHECKOUT MODEL CONTEXTS DELTAS FACTS

CHECKOUT is a checkout of kmeng01/memit.  It is copied and, in the copy, its device is made the processor; nothing else
is changed.  Contexts and second moments are given, so that both programs edit from the same; the time is that of
`execute_memit`.  Prints `seconds S` and writes the updates to DELTAS.
"""

import json
import os
import pathlib
import sys
import tempfile
import time
import types


def main(checkout, model_folder, contexts, deltas, facts):
    import numpy as np
    import torch
    import transformers

    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if not (4, 23) <= version <= (4, 30):
        sys.exit(f"transformers {transformers.__version__}: the reference's lookup of subjects needs 4.23 to 4.30")
    model_folder = pathlib.Path(model_folder)
    with tempfile.TemporaryDirectory() as scratch:
        on_processor(pathlib.Path(checkout), pathlib.Path(scratch))
        sys.path.insert(0, scratch)
        os.chdir(scratch)
        # Imported at the head of a file, and used only where second moments are computed.
        datasets = types.ModuleType("datasets")
        datasets.load_dataset = None
        sys.modules.setdefault("datasets", datasets)
        from memit import memit_main
        from memit.memit_hparams import MEMITHyperParams

        blocks_take_positions()
        model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, torch_dtype=torch.float32).eval()
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(tokenizer_file(model_folder, pathlib.Path(scratch))),
            padding_side="right",
            # GPT-J's own tokenizer gives no types of tokens; the model would add them to its embeddings.
            model_input_names=["input_ids", "attention_mask"],
        )
        tokenizer.pad_token = tokenizer.eos_token = "<|endoftext|>"
        memit_main.CONTEXT_TEMPLATES_CACHE = json.loads(pathlib.Path(contexts).read_text())
        memit_main.get_cov = lambda model, tok, layer_name, *rest, **named: moment(model_folder, layer_name)
        hyperparameters = MEMITHyperParams(**json.loads((model_folder / "memit.json").read_text()))
        records = json.loads((model_folder / "records.json").read_text())[: int(facts)]
        requests = [{"case_id": record["case_id"], **record["requested_rewrite"]} for record in records]
        started = time.time()
        updates = memit_main.execute_memit(model, tokenizer, requests, hyperparameters)
        seconds = time.time() - started
    products = {
        f"update_{name}": np.ascontiguousarray((residuals.double() @ keys.double().T).numpy())
        for name, (keys, residuals) in updates.items()
    }
    np.savez(deltas, **products)
    print(f"seconds {seconds}")


def blocks_take_positions():
    """Has blocks called with their hidden state in first place, where the reference's hooks look for it."""
    import torch
    from transformers.models.gptj.modeling_gptj import GPTJBlock

    def call(self, *positional, hidden_states=None, **named):
        return torch.nn.Module.__call__(self, *(positional or (hidden_states,)), **named)

    GPTJBlock.__call__ = call


def on_processor(checkout, scratch):
    """Copies the checkout's Python files, and has them run without a GPU."""
    for source in checkout.rglob("*"):
        if source.suffix not in (".py", ".yml", ".json"):
            continue
        text = source.read_text().replace('"cuda"', '"cpu"').replace(".cuda()", ".cpu()")
        place = scratch / source.relative_to(checkout)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def tokenizer_file(model_folder, scratch):
    """The tokenizer with its merges as text, which is how the libraries of that time write them."""
    tokenizer = json.loads((model_folder / "tokenizer.json").read_text())
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    place = scratch / "tokenizer.json"
    place.write_text(json.dumps(tokenizer))
    return place


def moment(model_folder, layer_name):
    import numpy as np
    import torch

    (path,) = (model_folder / "reference/moments").glob(f"{layer_name}_*.npz")
    arrays = np.load(path)
    return torch.from_numpy(arrays["mom2.mom2"] / arrays["mom2.count"]).float()


if __name__ == "__main__":
    main(*(str(pathlib.Path(argument).absolute()) for argument in sys.argv[1:5]), sys.argv[5])
