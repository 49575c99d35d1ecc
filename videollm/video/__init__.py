"""From a video file to chosen frames and the seconds at which they are shown."""
