"""What each family of translation models calls a language: one table, by BCP 47 code.

Sources: NLLB-200, https://arxiv.org/abs/2207.04672 (FLORES-200 codes); M2M-100,
https://arxiv.org/abs/2010.11125; mBART-50, https://arxiv.org/abs/2008.00401. MADLAD-400,
https://arxiv.org/abs/2309.04662, and OPUS-MT, https://github.com/Helsinki-NLP/Opus-MT, take BCP 47
or nearly so.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from xlcm.config import ConfigError
from xlcm.data.languages import language_fault
from xlcm.registry import nearest

Family: TypeAlias = Literal["nllb", "m2m", "mbart50", "madlad", "marian"]

# BCP 47 | NLLB-200 | M2M-100 | mBART-50; a dash: the model lacks the language
_TABLE = """
af afr_Latn af af_ZA|am amh_Ethi am -|ar arb_Arab ar ar_AR|arz arz_Arab - -|ary ary_Arab - -|
as asm_Beng - -|ast ast_Latn ast -|az azj_Latn az az_AZ|ba bak_Cyrl ba -|be bel_Cyrl be -|
bg bul_Cyrl bg -|bho bho_Deva - -|bn ben_Beng bn bn_IN|bo bod_Tibt - -|br - br -|bs bos_Latn bs -|
ca cat_Latn ca -|ceb ceb_Latn ceb -|ckb ckb_Arab - -|cs ces_Latn cs cs_CZ|cy cym_Latn cy -|
da dan_Latn da -|de deu_Latn de de_DE|el ell_Grek el -|en eng_Latn en en_XX|eo epo_Latn - -|
es spa_Latn es es_XX|et est_Latn et et_EE|eu eus_Latn - -|fa pes_Arab fa fa_IR|fi fin_Latn fi fi_FI|
fil tgl_Latn tl tl_XX|fo fao_Latn - -|fr fra_Latn fr fr_XX|fy - fy -|ga gle_Latn ga -|
gd gla_Latn gd -|gl glg_Latn gl gl_ES|gn grn_Latn - -|gu guj_Gujr gu gu_IN|ha hau_Latn ha -|
he heb_Hebr he he_IL|hi hin_Deva hi hi_IN|hr hrv_Latn hr hr_HR|ht hat_Latn ht -|hu hun_Latn hu -|
hy hye_Armn hy -|id ind_Latn id id_ID|ig ibo_Latn ig -|ilo ilo_Latn ilo -|is isl_Latn is -|
it ita_Latn it it_IT|ja jpn_Jpan ja ja_XX|jv jav_Latn jv -|ka kat_Geor ka ka_GE|
kk kaz_Cyrl kk kk_KZ|km khm_Khmr km km_KH|kn kan_Knda kn -|ko kor_Hang ko ko_KR|
ky kir_Cyrl - -|lb ltz_Latn lb -|
lg lug_Latn lg -|ln lin_Latn ln -|lo lao_Laoo lo -|lt lit_Latn lt lt_LT|lv lvs_Latn lv lv_LV|
mai mai_Deva - -|mg plt_Latn mg -|mi mri_Latn - -|mk mkd_Cyrl mk mk_MK|ml mal_Mlym ml ml_IN|
mn khk_Cyrl mn mn_MN|mr mar_Deva mr mr_IN|ms zsm_Latn ms -|mt mlt_Latn - -|my mya_Mymr my my_MM|
nb nob_Latn no -|ne npi_Deva ne ne_NP|nl nld_Latn nl nl_XX|nn nno_Latn - -|no nob_Latn no -|
nso nso_Latn ns -|ny nya_Latn - -|oc oci_Latn oc -|om gaz_Latn - -|or ory_Orya or -|
pa pan_Guru pa -|pl pol_Latn pl pl_PL|ps pbt_Arab ps ps_AF|pt por_Latn pt pt_XX|
pt-BR por_Latn pt pt_XX|pt-PT por_Latn pt pt_XX|quy quy_Latn - -|ro ron_Latn ro ro_RO|
ru rus_Cyrl ru ru_RU|rw kin_Latn - -|sd snd_Arab sd -|si sin_Sinh si si_LK|sk slk_Latn sk -|
sl slv_Latn sl sl_SI|sn sna_Latn - -|so som_Latn so -|sq als_Latn sq -|sr srp_Cyrl sr -|
ss ssw_Latn ss -|st sot_Latn - -|su sun_Latn su -|sv swe_Latn sv sv_SE|sw swh_Latn sw sw_KE|
ta tam_Taml ta ta_IN|te tel_Telu - te_IN|tg tgk_Cyrl - -|th tha_Thai th th_TH|ti tir_Ethi - -|
tl tgl_Latn tl tl_XX|tn tsn_Latn tn -|tr tur_Latn tr tr_TR|ts tso_Latn - -|ug uig_Arab - -|
uk ukr_Cyrl uk uk_UA|ur urd_Arab ur ur_PK|uz uzn_Latn uz -|vi vie_Latn vi vi_VN|wo wol_Latn wo -|
xh xho_Latn xh xh_ZA|yi ydd_Hebr yi -|yo yor_Latn yo -|yue yue_Hant - -|zh zho_Hans zh zh_CN|
zh-Hans zho_Hans zh zh_CN|zh-Hant zho_Hant - -|zu zul_Latn zu -
"""
_COLUMNS: dict[Family, int] = {"nllb": 1, "m2m": 2, "mbart50": 3}
CODES: dict[str, list[str]] = {
    entry.split()[0]: entry.split() for entry in _TABLE.replace("\n", "").split("|")
}
"""BCP 47 -> [itself, NLLB-200, M2M-100, mBART-50]."""


def model_code(lang: str, family: Family) -> str:
    """Return what a family of models calls a BCP 47 language.

    Raises:
        ConfigError: if it is no language code, or the family lacks the language.
    """
    if fault := language_fault(lang):
        raise ConfigError(fault)
    if family in ("madlad", "marian"):
        return lang.replace("-", "_") if family == "madlad" else lang.partition("-")[0]
    column = _COLUMNS[family]
    code = CODES.get(lang, ["-"] * 4)[column]
    if code == "-":
        known = [name for name, row in CODES.items() if row[column] != "-"]
        raise ConfigError(
            f"{family} models have no {lang!r} in xlcm/translation/codes.py{nearest(lang, known)}; "
            f"known: {', '.join(known)}; a code of the model's own goes into the engine's `codes`: "
            f"{{{lang}: ...}}"
        )
    return code
