"""The headers that every answer has, whatever was asked."""

ALWAYS = {
    "x-content-type-options": "nosniff",  # a browser takes the Content-Type as it is, and runs no text as a script
    "cross-origin-resource-policy": "same-origin",  # no page of another site holds an answer as its picture or script
}
