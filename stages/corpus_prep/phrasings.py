"""How people ask. Which words ask for which tool is a fixed rule, so that it can be learned:

    calculator   an arithmetic expression stands in the request
    lookup       "look up", "entry", "index": followed by the exact name
    search       "search": followed by what is wanted in words
    no tool      "what does X do", "explain X", "signature of X", greetings

Each family has phrasings that training sees and others that it never sees; scenarios count the two apart.
Every request may open with one of the prefixes.
"""

from __future__ import annotations

from stages.whitebox.arithmetic_requests import Phrasings

LOOKUP = Phrasings(
    seen=(
        "Look up {symbol}.",
        "Look up {symbol} for me.",
        "Please look up {symbol}.",
        "Can you look up {symbol}?",
        "Look {symbol} up.",
        "Use lookup on {symbol}.",
        "Show the entry of {symbol}.",
        "Find {symbol} in the index.",
        "Open the entry {symbol}.",
        "Get the reference entry of {symbol}.",
        "I want to look up {symbol}.",
        "Lookup: {symbol}",
    ),
    unseen=(
        "Do a lookup of {symbol}.",
        "Bring up the entry for {symbol}.",
        "Could you look up {symbol} now?",
    ),
)

SEARCH = Phrasings(
    seen=(
        "Search the docs for {query}.",
        "Search for {query}.",
        "Please search for {query}.",
        "Can you search for {query}?",
        "Search: {query}",
        "Use search: {query}.",
        "Run a search for {query}.",
        "Search the index for {query}.",
        "Do a search: {query}.",
        "I want to search for {query}.",
        "Start a search for {query}.",
        "Search the documentation: {query}.",
    ),
    unseen=(
        "Make a search for {query}.",
        "Search everything for {query}.",
        "Could you search the docs: {query}?",
    ),
)

SEARCH_THEN_LOOKUP = Phrasings(
    seen=(
        "Search for {query} and look up the best hit.",
        "Search for {query}, then look up what you find.",
        "Search the docs for {query} and look up the first hit.",
        "Run a search for {query}, then look up the result.",
        "First search for {query}, then look up the hit.",
        "Search: {query}. Then look up the best hit.",
    ),
    unseen=(
        "Search for {query} and look that up.",
        "Use search: {query}, and look up the top hit afterwards.",
    ),
)

LOOKUP_AND_CALCULATE = Phrasings(
    seen=(
        "Look up {symbol} and calculate {expression}.",
        "Look up {symbol}, then compute {expression}.",
        "Please look up {symbol} and work out {expression}.",
        "First look up {symbol}, then calculate {expression}.",
        "Look up {symbol}. Also, what is {expression}?",
        "Use lookup on {symbol} and evaluate {expression}.",
    ),
    unseen=(
        "Look up {symbol} as well as {expression}.",
        "Open the entry {symbol}, and tell me {expression}.",
    ),
)

WHAT_DOES_IT_DO = Phrasings(
    seen=(
        "What does {title} do?",
        "Explain {title}.",
        "What is {title} for?",
        "Describe {title}.",
        "Tell me about {title}.",
        "What is the purpose of {title}?",
        "What is {title} good for?",
        "Explain {title} to me.",
    ),
    unseen=("In short, what does {title} do?", "What would I use {title} for?", "Summarise {title}."),
)

WHAT_IS_IT = Phrasings(
    seen=(
        "What is {title}?",
        "Tell me about {title}.",
        "Explain {title}.",
        "Describe {title}.",
        "What do you know about {title}?",
    ),
    unseen=("In short, what is {title}?", "Summarise {title}."),
)

WHAT_IS_IT_ZH = Phrasings(
    seen=("{title}是什么？", "请介绍{title}。", "解释一下{title}。", "请说明{title}。"),
    unseen=("简单说说{title}。", "{title}指的是什么？"),
)

WHAT_IS_IT_AR = Phrasings(
    seen=("ما هو {title}؟", "حدثني عن {title}.", "اشرح {title}.", "صف {title}."),
    unseen=("باختصار، ما هو {title}؟", "عرف {title}."),
)

SIGNATURE = Phrasings(
    seen=(
        "What is the signature of {title}?",
        "Show the signature of {title}.",
        "How do I call {title}?",
        "Which parameters does {title} take?",
    ),
    unseen=("Give me the signature of {title}.", "With which arguments is {title} called?"),
)

#: (what people say, what the assistant answers); the last request of each is unseen.
SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello!", "Hi!", "Hello there.", "Good morning!", "Hey!", "Hi there!", "Good evening!"),
        "Hello! Ask me about Python, or give me something to look up, search or calculate.",
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "Introduce yourself.",
            "Tell me about yourself.",
            "What is your name?",
        ),
        "I am a small assistant that was trained on the documentation of your Python.",
    ),
    (
        ("What can you do?", "How can you help me?", "What are you good at?", "What do you offer?", "Help."),
        "I can explain names, look them up, search the documentation and calculate.",
    ),
    (("Thank you!", "Thanks!", "Thanks a lot.", "Many thanks!", "That helped, thanks."), "You are welcome!"),
    (("Goodbye!", "Bye!", "See you later.", "Good night!", "That was all, bye."), "Goodbye!"),
    (
        ("How are you?", "How are you today?", "How is it going?", "Are you well?", "How do you feel?"),
        "I am a program, so I am always fine. What would you like to know?",
    ),
    (
        ("Which tools do you have?", "What tools can you use?", "List your tools.", "Name your tools."),
        "I have three tools: a calculator, a look-up of names, and a search.",
    ),
    (
        ("Are you a person?", "Are you human?", "Am I talking to a person?", "Are you real?"),
        "No, I am a small language model.",
    ),
)
