"""What this code takes from other libraries beside their documented interface, since there is no public way to it.

Each name with the files that use it and why. ``tests/unit/common/test_internals.py`` finds all of them in the installed
versions, and nothing private in the code that does not stand here. A name is the path to an object, ``()`` makes one,
and behind a colon stands a parameter that a function takes.
"""

GENERATE = "videollm/model/generate.py"
MODEL = "videollm/model/videollm.py"
MEMORY = "videollm/training/memory.py"

# (name, the file of ours that uses it, why)
INTERNALS = (
    ("transformers.Trainer.save_model:_internal_call", "videollm/training/trainer.py",
     "tells the beginning of a checkpoint from a model that is saved by itself"),
    ("transformers.PreTrainedModel._init_weights", MODEL, "parts are initialised already; the base class would again"),
    ("transformers.PreTrainedModel._init_weights", "videollm/model/towers.py", "as in the model"),
    ("transformers.PreTrainedModel._no_split_modules", MODEL, "how a model class declares what it can do"),
    ("transformers.PreTrainedModel._supports_sdpa", MODEL, "as above"),
    ("transformers.PreTrainedModel._supports_flash_attn", MODEL, "as above"),
    ("transformers.PreTrainedModel._supports_attention_backend", MODEL, "as above"),
    ("transformers.PretrainedConfig()._attn_implementation", MODEL, "which attention was asked for; no public getter"),
    ("transformers.PretrainedConfig()._attn_implementation", MEMORY, "as in the model"),
    ("transformers.modeling_layers.GradientCheckpointingLayer.gradient_checkpointing", MODEL,
     "whether layers are checkpointed; the public property has one name up to 5.22 and another behind it"),
    ("transformers.GenerationMixin.prepare_inputs_for_generation:is_first_iteration", GENERATE,
     "the hook that puts a predicted span in the place of its token; an own loop will replace it"),
    ("transformers.GenerationMixin.prepare_inputs_for_generation:next_sequence_length", GENERATE, "as above"),
    ("transformers.convert_slow_tokenizer.generate_merges", "distime/tokenizer.py",
     "InternLM2's SentencePiece model as a fast tokenizer; transformers converts only the classes it knows"),
    ("transformers.convert_slow_tokenizer.import_protobuf", "distime/tokenizer.py", "as above"),
    ("deepspeed.ops.__compatible_ops__", "videollm/training/preflight.py",
     "else DeepSpeed compiles its shared-memory op with g++ where there is no GPU"),
    ("torch._subclasses.fake_tensor.FakeTensorMode", MEMORY, "tensors with a shape and no memory"),
    ("torch.utils._python_dispatch.TorchDispatchMode", MEMORY, "sees every tensor that an operator makes"),
)  # fmt: skip
