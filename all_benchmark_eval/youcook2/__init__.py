"""YouCook2: dense captioning of cooking videos."""
