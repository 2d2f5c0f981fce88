from .recipe import Recipe as Recipe
from .resolve import RECIPES as RECIPES
from .resolve import resolve_recipe as resolve_recipe
