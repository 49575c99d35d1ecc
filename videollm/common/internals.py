"""What this code takes from other libraries beside their documented interface, since there is no public way to it.

Each name once, and why. ``tests/unit/common/test_internals.py`` finds all of them in the installed versions and in our
code, and nothing private in our code that does not stand here. A name is the path to an object, ``()`` makes one, and
behind a colon stands a parameter that a function takes.
"""

INTERNALS = {
    "transformers.Trainer.save_model:_internal_call": "tells the beginning of a checkpoint from a whole save",
    "transformers.PreTrainedModel._init_weights": "parts are initialised already; the base class would do it again",
    "transformers.PreTrainedModel._no_split_modules": "how a model class declares what it can do",
    "transformers.PreTrainedModel._supports_sdpa": "as above",
    "transformers.PreTrainedModel._supports_flash_attn": "as above",
    "transformers.PreTrainedModel._supports_attention_backend": "as above",
    "transformers.PretrainedConfig()._attn_implementation": "which attention was asked for",
    "transformers.modeling_layers.GradientCheckpointingLayer.gradient_checkpointing": "whether it is on; the public "
    "property changes its name within the versions that setup.py allows",
    "transformers.convert_slow_tokenizer.generate_merges": "a SentencePiece model as a fast tokenizer; transformers "
    "converts only the classes it knows",
    "transformers.convert_slow_tokenizer.import_protobuf": "as above",
    "deepspeed.ops.__compatible_ops__": "else DeepSpeed compiles its shared-memory op with g++ where there is no GPU",
    "torch._assert_async": "an error without a wait for the device; torch has no public name for it",
    "torch._subclasses.fake_tensor.FakeTensorMode": "tensors with a shape and no memory, for the memory estimate",
    "torch._subclasses.fake_tensor.unset_fake_temporarily": "what is cut by numbers gets them in between",
    "torch.utils._python_dispatch.TorchDispatchMode": "sees every tensor that an operator makes",
}
