from collections.abc import Callable
import pytest
from truthgate_eval.harness.lm_eval.probing import load_lm
from truthgate_eval.harness.lmms_eval.model import GatedVLM
from helpers import tiny_vision_models as f
from lmms_eval.api.instance import Instance

def test_a(checkpoint):
    for m, a in (("hf", {"contrast": 0.5}), ("hf", {"yes_offset": 3}), ("hf", {"scores":"random:1","lam": 2}),
                 ("gated_hf", {"scores": "random:1", "lam": "kl:0.05"}), ("hf", {"yes_offset": "kl:0.01"})):
        lm = load_lm(m, {"pretrained": checkpoint, **a}, batch_size=1, device="cpu")
        print(m, a, lm.gate_settings.describe(), lm.contrast, lm.gate_handle)

def test_b(vlm_checkpoint, tmp_path):
    silent = tmp_path / "silent.jinja"
    silent.write_text("{% for m in messages if m.role != 'system' %}{% for c in m.content %}"
        "{{ '<image>' if c.type == 'image' else c.text }}{% endfor %}{% endfor %}")
    m = GatedVLM(vlm_checkpoint("llava"), device="cpu", scores="none", chat_template=str(silent))
    for _ in range(2):
        try:
            with m.system_instruction_of_run("Be honest."):
                print("RAN with", m.options.system_instruction, m.vlm.prompt("x", 1))
        except Exception as e:
            print("ERR", e)
    print(m.options.system_instruction)

@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_c(name, vlm_checkpoint):
    m = GatedVLM(vlm_checkpoint(name), device="cpu", scores="none", contrast=1, contrast_image="none")
    m.task_dict["t"] = {"s": [{"images": [f.random_image(1, (40, 60))]}]}
    prompts=[]
    orig = type(m.vlm).prompt
    type(m.vlm).prompt = lambda vlm, *a: prompts.append(orig(vlm,*a)) or prompts[-1]
    try:
        r = [Instance("loglikelihood", ("Look at <image>. Is there a cat?", "Yes", lambda d: d["images"], 0, "t", "s"), 0, {"task":"t","doc_id":0,"repeats":1})]
        try:
            print(m.loglikelihood(r))
        except Exception as e:
            print("ERR", repr(e))
        print(set(prompts))
    finally:
        type(m.vlm).prompt = orig
