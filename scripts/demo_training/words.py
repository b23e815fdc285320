"""Word lists and random text for the demo's training prompts. Law: all randomness is `rng`'s."""

from random import Random


def words(text: str) -> list[str]:
    """A word list, written as text."""
    return text.split()


COMMON = words("""
about after again air all also always and animal another answer any ask away back ball bank be
beach because before best better big bird black blue boat book both box boy bread bring brown build
but buy call can carry cat chair change children city clean close cloud cold come cook country cut
dark day deep dinner do dog door down draw dream drink early earth eat end enough even every eye
face fall family far farm fast father find fine first fish five flower fly follow food foot for
forest four fox friend from game garden girl give glass go gold good grass great green group grow
hand happy hard have he head hear heart heavy hello help her here high hill hold home horse hot
hour house how hundred idea if is island it jump just keep kind king know lake language large last
late laugh learn leave left letter life light like line listen little live long look love lunch
machine make man many map mark me mean meet milk mind money month moon more morning mother mountain
move much music my name near never new next night north nothing now number ocean of often old on
one open orange order other our out over page paper parent park people phone picture place plan
plant play point quick quiet rain read ready red rest rice river road rock room run said same sand
school science sea second see seven she ship shop short show side simple sing sister sit sky sleep
slow small snow so some song soon south space spring stand star start stay still stone stop store
story street strong summer sun swim table take talk tall teach tell ten test thank that the their
then there these they thing think this three time to today together tomorrow town train travel tree
true try turn two under until up us use very visit voice wait walk wall want warm was watch water
way we week well west what when where which white who why will wind window winter with woman word
work world write year yellow yes yesterday you young your zebra
""")

FIRST_NAMES = words("""
Alice Bob Carol David Emma Frank Grace Henry Irene Jack Karen Liam Maria Nina Oscar Paul Quinn Rosa
Sam Tina Uma Victor Wendy Xavier Yara Zoe Ahmed Bianca Chen Diego Elena Fatima George Hanna Ivan
Julia Kofi Lena Mei Noah Olga Priya Ravi Sofia Tom Ursula Viktor Yusuf Anna Ben Clara Dan Eva Leo
""")

LAST_NAMES = words("""
Smith Jones Brown Garcia Miller Davis Lopez Wilson Moore Lee Clark Lewis Young King Wright Hill
Green Baker Nelson Carter Rossi Weber Novak Silva Kim Tanaka Patel Okafor Larsen Dubois
""")

CITIES = words("""
Paris London Berlin Rome Madrid Tokyo Lima Oslo Cairo Delhi Boston Chicago Dublin Lisbon Prague
Vienna Warsaw Athens Seoul Sydney Toronto Denver Austin Miami Seattle Zurich Geneva Milan Munich
Hamburg Kyoto Osaka Lagos Nairobi Accra Santiago Bogota Havana Helsinki Stockholm Brussels Budapest
""")

_ONSETS = words("b bl br c ch cl d dr f fl g gr h j k l m n p pl r s sh sk st t th tr v w z")
_VOWELS = words("a e i o u ai ea oo")
_CODAS = ["", "", "n", "r", "s", "t", "l", "m", "ck", "nd"]
_ACCENTED = "äöüéèàçñåøßÄÖÜÉ"
_SCRIPTS = (
    *((0x391, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA), (0x905, 0x939), (0x3041, 0x3096)),
    *((0x4E00, 0x9FFF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1F64F)),
)


def pseudo_word(rng: Random) -> str:
    """A pronounceable word that is (most likely) in no dictionary."""
    count = rng.choice((1, 2, 2, 3))
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count)
    )


def word(rng: Random) -> str:
    """A common word, or sometimes an invented one."""
    return rng.choice(COMMON) if rng.random() < 0.65 else pseudo_word(rng)


def proper(rng: Random, known: list[str]) -> str:
    """A name from `known`, or as often an invented one, so that names are copied, not recalled."""
    return rng.choice(known) if rng.random() < 0.5 else pseudo_word(rng).capitalize()


def city(rng: Random) -> str:
    """The name of a city, sometimes of two words."""
    first = "" if rng.random() < 0.85 else rng.choice(("New ", "San ", "Los ", "Saint "))
    return first + proper(rng, CITIES)


def phrase(rng: Random, words: int) -> str:
    """`words` words the way people type them: case, punctuation and numbers vary."""
    parts = [word(rng) for _ in range(words)]
    if rng.random() < 0.15:
        parts[rng.randrange(words)] = str(rng.randrange(10 ** rng.randint(1, 4)))
    if rng.random() < 0.1:
        i = rng.randrange(words)
        parts[i] = parts[i].capitalize()
    if words > 3 and rng.random() < 0.15:
        parts[rng.randrange(1, words - 1)] += ","
    text = " ".join(parts)
    if rng.random() < 0.4:
        text = text[0].upper() + text[1:]
    text = rng.choices((text, text.title(), text.upper()), (92, 5, 3))[0]
    return text + rng.choice(("", "", "", ".", "?", "!"))


def wild_text(rng: Random) -> str:
    """Text in any script: accents, Greek, Cyrillic, kana, Han, emoji, digits and symbols."""

    def piece() -> str:
        kind = rng.random()
        length = rng.randint(1, 6)
        if kind < 0.3:
            return word(rng)
        if kind < 0.5:
            return word(rng) + rng.choice(_ACCENTED) + rng.choice("abcdefg")
        if kind < 0.6:
            return "".join(chr(rng.randint(33, 126)) for _ in range(length))
        low, high = rng.choice(_SCRIPTS)
        return "".join(chr(rng.randint(low, high)) for _ in range(length))

    return " ".join(piece() for _ in range(rng.randint(1, 5)))
