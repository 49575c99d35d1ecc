"""Tools that know nothing of video: configs, processes, files, commands, spans of time as numbers."""
