"""Holds an exported adapter to PEFT: loads it beside its base, and compares with the edited checkpoint.

    python tests/adapter_by_peft.py BASE ADAPTER EDITED     # two model folders, and the folder that `mpatch export` wrote

Needs torch, transformers and peft, which the tests of this project do not.
"""

import sys

import peft
import torch
import transformers


def load(folder, dtype):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def main(base, adapter, edited):
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    stored = load(edited, "auto").state_dict()
    reference = load(edited, torch.float32)
    model = load(base, torch.float32)
    token_ids = torch.arange(1, 65).reshape(4, 16)
    with torch.no_grad():
        before = model(token_ids).logits
        expected = reference(token_ids).logits
        adapted = peft.PeftModel.from_pretrained(model, adapter)
        found = adapted(token_ids).logits
    moved, apart = (expected - before).abs().max().item(), (expected - found).abs().max().item()
    print(f"logits: the patch moves them by up to {moved:.3g}, the adapter gives them to {apart:.2g}")
    merged = adapted.merge_and_unload().state_dict()
    modules = sorted(peft.PeftConfig.from_pretrained(adapter).target_modules)
    equal = weights = 0
    for module in modules:
        ours = stored[f"{module}.weight"]
        theirs = merged[f"{module}.weight"].to(ours.dtype)
        equal += (ours == theirs).sum().item()
        weights += ours.numel()
    untouched = [name for name in stored if name.removesuffix(".weight") not in modules]
    same = all(torch.equal(stored[name].float(), merged[name].float()) for name in untouched)
    print(f"merged: {equal} of {weights} touched weights are the patch's own, others untouched: {same}")
    return 0 if same and moved > 100 * apart and equal > 0.99 * weights else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
