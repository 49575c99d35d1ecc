"""Answers shown to people: the viewer's static page, the demo, and the JavaScript that both share (``assets/``)."""
