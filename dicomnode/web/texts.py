"""The page's words, in English and Spanish, and which of the two a browser asked for (RFC 9110 12.5.4).

A test holds that both languages have the same keys and the same places for values.
"""

from __future__ import annotations

from typing import Literal

Language = Literal["en", "es"]
LANGUAGES: dict[Language, str] = {"en": "English", "es": "Español"}

TEXTS: dict[Language, dict[str, str]] = {
    "en": {
        "title": "Similar cases",
        "skip": "Skip to the cases",
        "language": "Language",
        "notice_label": "Notice",
        "notice": "Similar image of another patient, not a diagnosis",
        "similar": "Similar cases found: the {n} nearest are shown",
        "similar_one": "A similar case was found",
        "similar_why": "Ranked by the likeness of their images among {searched} cases that were searched. The nearest "
        "lie about as near as the cases of this repository lie to each other.",
        "other_modality": "Caution: this study is {modality}, and none of the cases shown is.",
        "untaught": "Caution: the model learnt from {taught} and was not taught {shows}.",
        "none": "No similar case in this repository",
        "none_why": "{searched} cases were searched. The image lies farther from its nearest case than nearly all "
        "cases here lie from theirs. The nearest are listed below so that you can judge for yourself.",
        "repository-too-small": "This repository is too small to tell",
        "repository-too-small_why": "{few}{cases}. So the node does not say whether the nearest cases are similar. "
        "They are listed below.",
        "not-searchable": "This image could not be searched",
        "not-searchable_why": "Nothing in the study is an image that the node can compare.",
        "reason": "Reason: {reason}",
        "empty": "There is no case to show",
        "empty_why": "The repository holds no case of another patient that may be compared with this image. "
        "As studies are added, new questions will find them.",
        "cases": "Cases",
        "nearest": "Nearest cases",
        "below": "below threshold",
        "case": "Case {rank}",
        "alt": "Best matching slice of case {rank}, {modality}",
        "similarity": "Similarity",
        "score_note": "An uncalibrated score from 0 to 1: it ranks the cases of this answer. It is not a "
        "probability, and scores of two answers cannot be compared.",
        "percent_note": "Calibrated on the labelled cases of this repository.",
        "findings": "Findings recorded for this case",
        "present": "Finding recorded",
        "absent": "Stated to have no finding",
        "unknown": "Findings not known",
        "modality": "Modality",
        "subject": "Pseudonym",
        "tally": "What these cases have",
        "tally_of": "{n} of {total}",
        "tally_note": "Counts of the cases shown; they say nothing about the patient in question.",
        "legend": "Symbols",
        "about": "How this was found",
        "about_query": "Compared: {modality}, {slices} slices.",
        "about_p": "Share of the patients here whose nearest other case is at least as far away (conformal p): {p}.",
        "about_model": "Image model {model}.",
        "about_method": "Every case is de-identified and comes from this repository; cases of the same patient are "
        "left out. Computed by software, without a physician's review.",
        "unknown_title": "This link leads nowhere",
        "unknown_text": "There is no result behind this link. Check that it was copied whole from the report.",
        "expired_title": "This link has expired",
        "expired_text": "Result links work for a limited time. Send the study to the node again for a new answer.",
        "error_title": "Something went wrong",
        "error_text": "The page could not be made. The node has logged where; please try again in a moment.",
        "sign_in_title": "Sign in",
        "sign_in_skip": "Skip to the form",
        "sign_in_why": "Results are for people of this organisation.",
        "sign_in_nobody": "There is no user yet. On the node's machine, run:",
        "sign_in_name": "Name",
        "sign_in_password": "Password",
        "sign_in_button": "Sign in",
        "sign_in_wrong": "Name or password is wrong.",
        "sign_in_form_old": "This form was too old. Please sign in again.",
        "sign_in_too_often": "Too many attempts. Try again in {seconds} seconds.",
        "sign_out_title": "Sign out",
        "sign_out_skip": "Skip to the form",
        "sign_out_why": "You are signed in as {name}.",
        "sign_out_button": "Sign out",
        "link_title": "Similar cases",
        "link_skip": "Skip to the form",
        "link_why": "This link opens one result: cases of the repository whose images are similar. It holds images "
        "of other patients without their identity.",
        "link_button": "Open the result",
        "link_scope": "It is opened in this browser until the browser is closed.",
        "wait_title": "One moment",
        "wait_skip": "Skip to the link",
        "wait_link": "Go on to the result",
    },
    "es": {
        "title": "Casos similares",
        "skip": "Ir a los casos",
        "language": "Idioma",
        "notice_label": "Aviso",
        "notice": "Imagen similar de otro paciente, no es un diagnóstico",
        "similar": "Hay casos similares: se muestran los {n} más próximos",
        "similar_one": "Hay un caso similar",
        "similar_why": "Ordenados por el parecido de sus imágenes entre {searched} casos buscados. Los más próximos "
        "están más o menos tan cerca como lo están entre sí los casos de este repositorio.",
        "other_modality": "Atención: este estudio es {modality} y ninguno de los casos mostrados lo es.",
        "untaught": "Atención: el modelo aprendió de {taught} y no se le enseñó {shows}.",
        "none": "Ningún caso similar en este repositorio",
        "none_why": "Se buscó en {searched} casos. La imagen está más lejos de su caso más próximo que casi todos los "
        "casos de aquí del suyo. Los más próximos se muestran abajo para que pueda juzgar.",
        "repository-too-small": "El repositorio es demasiado pequeño para saberlo",
        "repository-too-small_why": "{few}{cases}. Por eso el nodo no afirma si los casos más próximos son "
        "similares. Se muestran abajo.",
        "not-searchable": "No se pudo buscar esta imagen",
        "not-searchable_why": "Nada en el estudio es una imagen que el nodo pueda comparar.",
        "reason": "Motivo: {reason}",
        "empty": "No hay ningún caso que mostrar",
        "empty_why": "El repositorio no contiene casos de otros pacientes que puedan compararse con esta imagen. "
        "Cuando se añadan estudios, las nuevas consultas los encontrarán.",
        "cases": "Casos",
        "nearest": "Casos más próximos",
        "below": "bajo el umbral",
        "case": "Caso {rank}",
        "alt": "Corte más parecido del caso {rank}, {modality}",
        "similarity": "Similitud",
        "score_note": "Puntuación sin calibrar de 0 a 1: ordena los casos de esta respuesta. No es una "
        "probabilidad, y las puntuaciones de dos respuestas no se pueden comparar.",
        "percent_note": "Calibrada con los casos etiquetados de este repositorio.",
        "findings": "Hallazgos registrados de este caso",
        "present": "Hallazgo registrado",
        "absent": "Consta sin hallazgos",
        "unknown": "Hallazgos desconocidos",
        "modality": "Modalidad",
        "subject": "Seudónimo",
        "tally": "Qué tienen estos casos",
        "tally_of": "{n} de {total}",
        "tally_note": "Recuento de los casos mostrados; no dice nada del paciente en cuestión.",
        "legend": "Símbolos",
        "about": "Cómo se encontró",
        "about_query": "Comparado: {modality}, {slices} cortes.",
        "about_p": "Proporción de pacientes de aquí cuyo caso ajeno más próximo está al menos igual de lejos "
        "(p conforme): {p}.",
        "about_model": "Modelo de imagen {model}.",
        "about_method": "Todos los casos están desidentificados y son de este repositorio; se excluyen los del mismo "
        "paciente. Calculado por software, sin revisión médica.",
        "unknown_title": "Este enlace no lleva a nada",
        "unknown_text": "No hay ningún resultado tras este enlace. Compruebe que se copió entero del informe.",
        "expired_title": "Este enlace ha caducado",
        "expired_text": "Los enlaces funcionan por tiempo limitado. Envíe el estudio de nuevo al nodo para obtener "
        "otra respuesta.",
        "error_title": "Algo ha fallado",
        "error_text": "No se pudo crear la página. El nodo ha registrado dónde; inténtelo de nuevo en un momento.",
        "sign_in_title": "Iniciar sesión",
        "sign_in_skip": "Ir al formulario",
        "sign_in_why": "Los resultados son para personas de esta organización.",
        "sign_in_nobody": "Todavía no hay ningún usuario. En la máquina del nodo, ejecute:",
        "sign_in_name": "Nombre",
        "sign_in_password": "Contraseña",
        "sign_in_button": "Iniciar sesión",
        "sign_in_wrong": "El nombre o la contraseña no son correctos.",
        "sign_in_form_old": "Este formulario era demasiado antiguo. Inicie sesión de nuevo.",
        "sign_in_too_often": "Demasiados intentos. Inténtelo de nuevo en {seconds} segundos.",
        "sign_out_title": "Cerrar sesión",
        "sign_out_skip": "Ir al formulario",
        "sign_out_why": "Ha iniciado sesión como {name}.",
        "sign_out_button": "Cerrar sesión",
        "link_title": "Casos similares",
        "link_skip": "Ir al formulario",
        "link_why": "Este enlace abre un resultado: casos del repositorio con imágenes similares. Contiene imágenes "
        "de otros pacientes sin su identidad.",
        "link_button": "Abrir el resultado",
        "link_scope": "Queda abierto en este navegador hasta que se cierre.",
        "wait_title": "Un momento",
        "wait_skip": "Ir al enlace",
        "wait_link": "Continuar al resultado",
    },
}


def choose_language(asked: str | None, accept: str, default: Language) -> Language:
    """The language of ``?lang``, else the best of the Accept-Language header, else the default."""
    for language in LANGUAGES:
        if asked == language:
            return language
    best: tuple[float, Language] = (0.0, default)
    for item in accept.split(",")[:20]:
        tag, _, parameters = item.strip().partition(";")
        quality = _quality(parameters)
        for language in LANGUAGES:
            if tag.lower().split("-")[0] == language and quality > best[0]:
                best = (quality, language)
    return best[1]


def _quality(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0
