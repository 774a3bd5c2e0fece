"""Which language codes are valid: BCP 47, in its canonical spelling.

Captions are matched by their code as it is written, so `zh-hant`, `zh_Hant` and `zho-Hant` would
be three languages that never meet. Exactly one spelling is accepted; messages name it.

Source: RFC 5646 (form and canonical case), ISO 639-1, 639-3, 15924 and 3166-1 (the codes).
"""

# ruff: noqa: SIM905 -- hundreds of codes read better as words

from __future__ import annotations

import functools
import re

from xlcm.registry import nearest

# ISO 639-1, ISO 639-3, English name
_TWO_LETTERS = """
aa aar Afar|ab abk Abkhazian|ae ave Avestan|af afr Afrikaans|ak aka Akan|am amh Amharic|
an arg Aragonese|ar ara Arabic|as asm Assamese|av ava Avaric|ay aym Aymara|az aze Azerbaijani|
ba bak Bashkir|be bel Belarusian|bg bul Bulgarian|bh bih Bihari|bi bis Bislama|bm bam Bambara|
bn ben Bengali|bo bod Tibetan|br bre Breton|bs bos Bosnian|ca cat Catalan|ce che Chechen|
ch cha Chamorro|co cos Corsican|cr cre Cree|cs ces Czech|cu chu Church Slavic|cv chv Chuvash|
cy cym Welsh|da dan Danish|de deu German|dv div Divehi|dz dzo Dzongkha|ee ewe Ewe|el ell Greek|
en eng English|eo epo Esperanto|es spa Spanish|et est Estonian|eu eus Basque|fa fas Persian|
ff ful Fulah|fi fin Finnish|fj fij Fijian|fo fao Faroese|fr fra French|fy fry Western Frisian|
ga gle Irish|gd gla Scottish Gaelic|gl glg Galician|gn grn Guarani|gu guj Gujarati|gv glv Manx|
ha hau Hausa|he heb Hebrew|hi hin Hindi|ho hmo Hiri Motu|hr hrv Croatian|ht hat Haitian Creole|
hu hun Hungarian|hy hye Armenian|hz her Herero|ia ina Interlingua|id ind Indonesian|
ie ile Interlingue|ig ibo Igbo|ii iii Sichuan Yi|ik ipk Inupiaq|io ido Ido|is isl Icelandic|
it ita Italian|iu iku Inuktitut|ja jpn Japanese|jv jav Javanese|ka kat Georgian|kg kon Kongo|
ki kik Kikuyu|kj kua Kuanyama|kk kaz Kazakh|kl kal Greenlandic|km khm Khmer|kn kan Kannada|
ko kor Korean|kr kau Kanuri|ks kas Kashmiri|ku kur Kurdish|kv kom Komi|kw cor Cornish|
ky kir Kyrgyz|la lat Latin|lb ltz Luxembourgish|lg lug Ganda|li lim Limburgish|ln lin Lingala|
lo lao Lao|lt lit Lithuanian|lu lub Luba-Katanga|lv lav Latvian|mg mlg Malagasy|mh mah Marshallese|
mi mri Maori|mk mkd Macedonian|ml mal Malayalam|mn mon Mongolian|mr mar Marathi|ms msa Malay|
mt mlt Maltese|my mya Burmese|na nau Nauru|nb nob Norwegian Bokmål|nd nde North Ndebele|
ne nep Nepali|ng ndo Ndonga|nl nld Dutch|nn nno Norwegian Nynorsk|no nor Norwegian|
nr nbl South Ndebele|nv nav Navajo|ny nya Chichewa|oc oci Occitan|oj oji Ojibwa|om orm Oromo|
or ori Odia|os oss Ossetian|pa pan Punjabi|pi pli Pali|pl pol Polish|ps pus Pashto|
pt por Portuguese|qu que Quechua|rm roh Romansh|rn run Rundi|ro ron Romanian|ru rus Russian|
rw kin Kinyarwanda|sa san Sanskrit|sc srd Sardinian|sd snd Sindhi|se sme Northern Sami|
sg sag Sango|si sin Sinhala|sk slk Slovak|sl slv Slovenian|sm smo Samoan|sn sna Shona|
so som Somali|sq sqi Albanian|sr srp Serbian|ss ssw Swati|st sot Southern Sotho|su sun Sundanese|
sv swe Swedish|sw swa Swahili|ta tam Tamil|te tel Telugu|tg tgk Tajik|th tha Thai|ti tir Tigrinya|
tk tuk Turkmen|tl tgl Tagalog|tn tsn Tswana|to ton Tonga|tr tur Turkish|ts tso Tsonga|tt tat Tatar|
tw twi Twi|ty tah Tahitian|ug uig Uyghur|uk ukr Ukrainian|ur urd Urdu|uz uzb Uzbek|ve ven Venda|
vi vie Vietnamese|vo vol Volapük|wa wln Walloon|wo wol Wolof|xh xho Xhosa|yi yid Yiddish|
yo yor Yoruba|za zha Zhuang|zh zho Chinese|zu zul Zulu
"""

# ISO 639-3 codes without a short form: those of NLLB-200, M2M-100, Crossmodal-3600, the larger
# Wikipedias, and `und` (undetermined), `mul` (several)
_THREE_LETTERS = """
ace Acehnese|acm Iraqi Arabic|acq Ta'izzi Arabic|aeb Tunisian Arabic|ajp South Levantine Arabic|
als Tosk Albanian|apc Levantine Arabic|arb Standard Arabic|ars Najdi Arabic|ary Moroccan Arabic|
arz Egyptian Arabic|ast Asturian|awa Awadhi|ayr Central Aymara|azb South Azerbaijani|
azj North Azerbaijani|ban Balinese|bar Bavarian|bcl Central Bikol|bem Bemba|bho Bhojpuri|bjn Banjar|
bpy Bishnupriya|brx Bodo|bug Buginese|ceb Cebuano|chr Cherokee|cjk Chokwe|ckb Central Kurdish|
cmn Mandarin Chinese|crh Crimean Tatar|csb Kashubian|dik Southwestern Dinka|doi Dogri|
dsb Lower Sorbian|dyu Dyula|ekk Standard Estonian|fil Filipino|fon Fon|frp Arpitan|
frr Northern Frisian|fur Friulian|fuv Nigerian Fulfulde|gaz West Central Oromo|gom Goan Konkani|
gsw Swiss German|hak Hakka Chinese|haw Hawaiian|hif Fiji Hindi|hil Hiligaynon|hne Chhattisgarhi|
hsb Upper Sorbian|ilo Ilocano|jam Jamaican Creole|kab Kabyle|kac Kachin|kam Kamba|kbp Kabiyè|
kea Kabuverdianu|khk Halh Mongolian|kmb Kimbundu|kmr Northern Kurdish|kok Konkani|
krc Karachay-Balkar|lij Ligurian|lmo Lombard|ltg Latgalian|lua Luba-Kasai|luo Luo|lus Mizo|
lvs Standard Latvian|lzh Classical Chinese|mag Magahi|mai Maithili|mhr Meadow Mari|
min Minangkabau|mni Manipuri|mos Mossi|mul several languages|mwl Mirandese|mzn Mazanderani|
nan Min Nan Chinese|nap Neapolitan|
nds Low German|new Newari|npi Nepali proper|nqo N'Ko|nso Northern Sotho|nus Nuer|nyn Nyankole|
ory Odia proper|pag Pangasinan|pam Pampanga|pap Papiamento|pbt Southern Pashto|pcm Nigerian Pidgin|
pes Iranian Persian|plt Plateau Malagasy|pms Piedmontese|pnb Western Punjabi|prs Dari|
quy Ayacucho Quechua|quz Cusco Quechua|rue Rusyn|sah Yakut|sat Santali|scn Sicilian|sco Scots|
sdh Southern Kurdish|shn Shan|sma Southern Sami|smn Inari Sami|sms Skolt Sami|srn Sranan Tongo|
swh Coastal Swahili|szl Silesian|taq Tamasheq|tpi Tok Pisin|tum Tumbuka|tyv Tuvan|
tzm Central Atlas Tamazight|udm Udmurt|umb Umbundu|und undetermined|uzn Northern Uzbek|vec Venetian|
vls West Flemish|war Waray|wuu Wu Chinese|xmf Mingrelian|ydd Eastern Yiddish|yue Cantonese|
zgh Standard Moroccan Tamazight|zsm Standard Malay
"""

_SCRIPTS = frozenset(
    "Adlm Arab Armn Beng Bopo Brai Cans Cher Copt Cyrl Deva Ethi Geor Goth Grek Gujr Guru Hang "
    "Hani Hans Hant Hebr Hira Hrkt Java Jpan Kana Khmr Knda Kore Laoo Latn Mlym Mong Mtei Mymr "
    "Nkoo Olck Orya Sinh Sund Syrc Taml Telu Tfng Thaa Thai Tibt Vaii Yiii Zyyy".split()
)
_REGIONS = frozenset(
    "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR "
    "BS BT BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ "
    "EC EE EG EH ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW "
    "GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY "
    "KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV "
    "MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY "
    "QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG "
    "TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA "
    "ZM ZW".split()
)
# what people write for it: country codes, withdrawn codes, bibliographic ISO 639-2 codes
_MEANT = dict(
    pair.split(":")
    for pair in "jp:ja cz:cs dk:da ua:uk cn:zh vn:vi us:en gb:en at:de iw:he in:id ji:yi jw:jv "
    "mo:ro sh:sr alb:sq arm:hy baq:eu bur:my chi:zh cze:cs dut:nl fre:fr geo:ka ger:de gre:el "
    "ice:is mac:mk mao:mi may:ms per:fa rum:ro slo:sk tib:bo wel:cy scc:sr scr:hr spanish:es "
    "mandarin:zh farsi:fa simplified:zh-Hans traditional:zh-Hant".split()
)


def _table(text: str, columns: int) -> list[list[str]]:
    return [entry.strip().split(" ", columns - 1) for entry in text.replace("\n", "").split("|")]


_SHORT = _table(_TWO_LETTERS, 3)
NAMES: dict[str, str] = {
    **{short: name for short, _, name in _SHORT},
    **dict(_table(_THREE_LETTERS, 2)),  # type: ignore[arg-type]
}
"""English names of the known languages by code."""
_LONG = {short: long for short, long, _ in _SHORT}
_MEANT.update({long: short for short, long in _LONG.items()})
_INDISTINCT = {"nb": "no", "nn": "no", "fil": "tl", "hr": "sr", "bs": "sr", "id": "ms"}
_MEANT.update({name.lower(): code for code, name in NAMES.items()})
_VARIANT = re.compile(r"[a-z0-9]{5,8}|[0-9][a-z0-9]{3}")


@functools.lru_cache(maxsize=4096)
def language_fault(lang: str) -> str | None:
    """Return what is wrong with a language code, with the way out; None if it is valid.

    Accepted are a known language, then optionally a script (`zh-Hant`), a region (`pt-BR`,
    `es-419`), variants (`de-1996`) and a private part (`und-x-elvish`), in canonical case.
    """
    canonical = _canonical(lang)
    if canonical == lang:
        return None
    if canonical:
        return f"{lang!r} is no BCP 47 language code; did you mean {canonical!r}?"
    if re.fullmatch(r"[a-z]{3}", lang):
        return (
            f"{lang!r} is not among the {len(NAMES)} languages known here"
            + nearest(lang, sorted(NAMES))
            + f" If ISO 639-3 has it, write 'und-x-{lang}', or add it to xlcm/data/languages.py"
        )
    return f"{lang!r} is no BCP 47 language code" + nearest(lang.lower(), sorted(NAMES))


def language_name(lang: str) -> str:
    """Return the English name of a code's language, with its script and region if there are."""
    base, *rest = lang.split("-")
    name = NAMES.get(base, base)
    return f"{name} ({', '.join(rest)})" if rest else name


def three_letters(code: str) -> str:
    """Return the ISO 639-2 code of a two-letter language, such as `deu` of `de`; else the code."""
    return _LONG.get(code, code)


def indistinct(lang: str) -> str:
    """Return the language that stands for those that one sentence can't tell apart, by its code."""
    return _INDISTINCT.get(lang, lang)


def _canonical(lang: str) -> str | None:
    """Return the one accepted spelling of what was probably meant, or None."""
    if lang.lower() in _MEANT:
        return _MEANT[lang.lower()]
    base, *rest = re.split(r"[-_]", lang)
    code = base.lower()
    code = code if code in NAMES else _MEANT.get(code, "")
    if not code or "-" in code:
        return None
    parts = [code]
    if rest and rest[0].title() in _SCRIPTS:
        parts.append(rest.pop(0).title())
    if rest and (rest[0].upper() in _REGIONS or re.fullmatch(r"[0-9]{3}", rest[0])):
        parts.append(rest.pop(0).upper())
    while rest and _VARIANT.fullmatch(rest[0].lower()):
        parts.append(rest.pop(0).lower())
    private = "-".join(rest).lower()
    if rest and not re.fullmatch(r"x(-[a-z0-9]{1,8})+", private):
        return None
    return "-".join([*parts, private] if private else parts)
