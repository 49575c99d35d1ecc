"""Chat templates as data: what stands around each turn, exactly as the published systems wrote it.

Sources: D2VLM spec section 2.3 (phi3, qwen2, llama3, gemma2, vicuna) and InternVL2.5 (DisTime spec section 2). A
template is strings only; ``prompt.py`` turns them into token ids. Names of special tokens inside are recognised there.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """``turn`` strings stand around a turn's text; only the answer and ``assistant_end`` are supervised."""

    name: str
    user: tuple[str, str]
    assistant: str
    assistant_end: str
    between: str = ""  # after an answer, if another turn follows
    closing: str = ""  # after the last answer
    system: tuple[str, str] | None = None  # None: the template has no system turn
    system_message: str = ""  # default system message

    @property
    def stop(self) -> str:
        """The special token that ends an answer."""
        return self.assistant_end


INTERNVL_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"  # noqa: RUF001
)
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

TEMPLATES = {
    template.name: template
    for template in (
        Template("plain", ("", "\n"), "", "<|im_end|>", between="\n"),
        # The answer follows the question's last word, whose state is the first query: tiny models learn to ask sooner.
        Template("bare", ("", ""), "", "<|im_end|>", between="\n"),
        Template(
            "phi3",
            ("<|user|>\n", "<|end|>\n"),
            "<|assistant|>\n",
            "<|end|>",
            between="\n",
            system=("<|system|>\n", "<|end|>\n"),
            system_message="You are a helpful AI assistant.",
        ),
        Template(
            "qwen2",
            ("<|im_start|>user\n", "<|im_end|>\n"),
            "<|im_start|>assistant\n",
            "<|im_end|>",
            between="\n",
            system=("<|im_start|>system\n", "<|im_end|>\n"),
            system_message="You are a helpful assistant.",
        ),
        Template(
            "llama3",
            ("<|start_header_id|>user<|end_header_id|>\n", "<|eot_id|>\n"),
            "<|start_header_id|>assistant<|end_header_id|>\n",
            "<|eot_id|>",
            between="\n",
            system=("<|start_header_id|>system<|end_header_id|>\n", "<|eot_id|>\n"),
            system_message="You are a helpful AI assistant",
        ),
        Template(
            "gemma2",
            ("<start_of_turn>user\n", "<end_of_turn>\n"),
            "<start_of_turn>model\n",
            "<end_of_turn>",
            between="\n",
        ),
        Template("vicuna", ("USER: ", " "), "ASSISTANT:", "</s>", system=("", " "), system_message=VICUNA_SYSTEM),
        Template(
            "internvl2_5",
            ("<|im_start|>user\n", "<|im_end|>\n"),
            "<|im_start|>assistant\n",
            "<|im_end|>",
            between="\n",
            closing="\n",
            system=("<|im_start|>system\n", "<|im_end|>\n"),
            system_message=INTERNVL_SYSTEM,
        ),
    )
}
