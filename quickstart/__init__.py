"""The quickstart: moving shapes from mp4 files to a scored, pictured comparison of three heads."""
