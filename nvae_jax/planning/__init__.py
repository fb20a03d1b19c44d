"""What training needs on devices that are not there: memory, arithmetic, communication."""
