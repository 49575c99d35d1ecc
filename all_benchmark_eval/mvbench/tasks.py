"""MVBench's twenty tasks as data: annotation file, folder of the videos, and what is special about them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """``timed``: only what lies from ``start`` to ``end`` is asked about. ``frames``: videos are folders of frames."""

    title: str
    folder: str
    timed: bool = False
    frames: bool = False


FRAMES = {"fps": 3, "first": 1}  # how frame folders are stored: frames a second, number of the first file
# By the annotation file's name without .json, in the order of the official table.
TASKS = {
    "action_sequence": Task("Action Sequence", "star/Charades_v1_480", timed=True),
    "action_prediction": Task("Action Prediction", "star/Charades_v1_480", timed=True),
    "action_antonym": Task("Action Antonym", "ssv2_video"),
    "fine_grained_action": Task("Fine-grained Action", "Moments_in_Time_Raw/videos"),
    "unexpected_action": Task("Unexpected Action", "FunQA_test/test"),
    "object_existence": Task("Object Existence", "clevrer/video_validation"),
    "object_interaction": Task("Object Interaction", "star/Charades_v1_480", timed=True),
    "object_shuffle": Task("Object Shuffle", "perception/videos"),
    "moving_direction": Task("Moving Direction", "clevrer/video_validation"),
    "action_localization": Task("Action Localization", "sta/sta_video", timed=True),
    "scene_transition": Task("Scene Transition", "scene_qa/video"),
    "action_count": Task("Action Count", "perception/videos"),
    "moving_count": Task("Moving Count", "clevrer/video_validation"),
    "moving_attribute": Task("Moving Attribute", "clevrer/video_validation"),
    "state_change": Task("State Change", "perception/videos"),
    "fine_grained_pose": Task("Fine-grained Pose", "nturgbd"),
    "character_order": Task("Character Order", "perception/videos"),
    "egocentric_navigation": Task("Egocentric Navigation", "vlnqa"),
    "episodic_reasoning": Task("Episodic Reasoning", "tvqa/frames_fps3_hq", timed=True, frames=True),
    "counterfactual_inference": Task("Counterfactual Inference", "clevrer/video_validation"),
}


def stem(name: str) -> str:
    """A task's file name from its title or its file name: "Fine-grained Pose" -> "fine_grained_pose"."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")
