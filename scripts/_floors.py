"""Print the lowest versions that setup.py allows, one ``name==version`` a line, for scripts/test.sh --oldest.

setup.py is parsed, not run, because a fresh environment may be without setuptools. Optional extras are left out.
"""

import ast
from pathlib import Path

setup = ast.parse((Path(__file__).parent.parent / "setup.py").read_text()).body[-1].value
arguments = {keyword.arg: keyword.value for keyword in setup.keywords}
needed = ast.literal_eval(arguments["install_requires"])
development = ast.literal_eval(arguments["extras_require"])["dev"]
for dependency in needed + development:
    print(dependency.split(",")[0].replace(">=", "=="))
