"""What people look at: the HTML page, previews, overviews, comparisons."""
