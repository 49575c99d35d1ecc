"""Chat templates as data: what stands around each turn, exactly as the published systems wrote it.

Sources: D2VLM's repository (phi3, qwen2, llama3, gemma2, vicuna) and InternVL2.5's. A
template is strings only; ``prompt.py`` turns them into token ids. Names of special tokens inside are recognised there.
"""

from dataclasses import KW_ONLY, dataclass

from videollm.common.config import ConfigError, later, need


@dataclass(frozen=True)
class Template:
    """What stands before and behind a turn's text; only the answer and ``stop`` are supervised."""

    name: str
    user: tuple[str, str]
    assistant: str
    stop: str  # the special token that ends an answer
    between: str = ""  # after an answer, if another turn follows
    closing: str = ""  # after the last answer
    system: tuple[str, str] | None = None  # None: the template has no system turn
    system_message: str = ""  # default system message


@dataclass
class VisualTokenSettings:
    """How the visual tokens of a frame stand in the prompt."""

    token: str = "<frame>"  # placeholder, a special token; added to the tokenizer if it is missing
    start: str = ""  # special token before a run of adjacent frames (InternVL's <img>)
    end: str = ""  # special token behind it
    after: str = "\n"  # text behind a whole video or image
    _: KW_ONLY
    image: str = later("")  # the token of an image; empty: as of a frame
    before: str = later("")  # text before every frame of a video: {number} from 1, {time} in s
    between: str = later("")  # text between two frames of a video

    def __post_init__(self):
        need(self.token, "model.visual_tokens.token: is empty; frames need a placeholder token, such as <frame>")
        try:
            self.before.format(number=1, time=0.0)
        except (LookupError, ValueError) as error:
            raise ConfigError(
                f"model.visual_tokens.before: {self.before!r} ({error}); only {{number}} and {{time}} stand for numbers"
            ) from None


INTERNVL_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"  # noqa: RUF001
)
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def tagged(name: str, tag: str, stop: str, system_message: str = "", model: str = "assistant", **more) -> Template:
    """A template that opens every turn with ``tag``, the speaker's name in it, and ends it with ``stop``."""
    around = {role: (tag.format(role), f"{stop}\n") for role in ("user", "system")}
    system = around["system"] if system_message else None
    named = {"between": "\n", "system": system, "system_message": system_message, **more}
    return Template(name, around["user"], tag.format(model), stop, **named)


CHATML = ("<|im_start|>{}\n", "<|im_end|>")
LLAMA3 = ("<|start_header_id|>{}<|end_header_id|>\n", "<|eot_id|>")
TEMPLATES = {
    template.name: template
    for template in (
        Template("plain", ("", "\n"), "", "<|im_end|>", between="\n"),
        # The answer follows the question's last word, whose state is the first query: tiny models learn to ask sooner.
        Template("bare", ("", ""), "", "<|im_end|>", between="\n"),
        tagged("phi3", "<|{}|>\n", "<|end|>", "You are a helpful AI assistant."),
        tagged("qwen2", *CHATML, "You are a helpful assistant."),
        tagged("llama3", *LLAMA3, "You are a helpful AI assistant"),
        tagged("gemma2", "<start_of_turn>{}\n", "<end_of_turn>", model="model"),
        Template("vicuna", ("USER: ", " "), "ASSISTANT:", "</s>", system=("", " "), system_message=VICUNA_SYSTEM),
        tagged("qwen3_vl", *CHATML),
        tagged("internvl2_5", *CHATML, INTERNVL_SYSTEM, closing="\n"),
    )
}
