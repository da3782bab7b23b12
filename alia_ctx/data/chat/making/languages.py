"""Words and sentences in English, Spanish, Catalan, Basque and Galician."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """Sentences with places for `{name}` (a function), `{args}`, `{parameter}`, `{result}`.

    ask: a request with arguments; ask_bare: without; follow: one more in the same talk;
    argument: one of them; and_: before the last; missing: asking back; give: the answer;
    decline: no tool does it; answer: after a result.
    """

    name: str
    ask: tuple[str, ...]
    ask_bare: tuple[str, ...]
    follow: tuple[str, ...]
    argument: tuple[str, ...]
    and_: str
    missing: tuple[str, ...]
    give: tuple[str, ...]
    decline: tuple[str, ...]
    answer: tuple[str, ...]
    cities: tuple[str, ...]
    people: tuple[str, ...]
    things: tuple[str, ...]


LANGUAGES: dict[str, Language] = {
    "en": Language(
        "English",
        ask=(
            "Could you run {name} with {args}?",
            "Please use {name}: {args}.",
            "I need {name}, with {args}.",
            "Call {name} for me; {args}.",
        ),
        ask_bare=("Could you run {name}?", "Please use {name}.", "I need {name}."),
        follow=(
            "Now I also need {name}: {args}.",
            "Thanks. Then run {name} with {args}.",
        ),
        argument=(
            "{parameter} {value}",
            "{parameter} = {value}",
            "{parameter}: {value}",
        ),
        and_=" and ",
        missing=(
            "To run {name} I still need {parameter}. What should it be?",
            "Which {parameter} should I use for {name}?",
        ),
        give=("{args}.", "Take {args}.", "It is {args}."),
        decline=(
            "None of the functions that I have can do this.",
            "I am sorry, but I have no tool for {name}.",
        ),
        answer=("The result of {name} is {result}.", "Done: {name} gave {result}."),
        cities=("London", "Dublin", "Boston", "Cape Town", "Wellington", "New York"),
        people=("Alice Moore", "Tom Baker", "Grace Hill", "Noah Reed"),
        things=(
            "blue lamp",
            "annual report",
            "garden chair",
            "river map",
            "red bicycle",
        ),
    ),
    "es": Language(
        "Spanish",
        ask=(
            "¿Puedes ejecutar {name} con {args}?",
            "Usa {name}, por favor: {args}.",
            "Necesito {name} con {args}.",
            "Llama a {name}; {args}.",
        ),
        ask_bare=(
            "¿Puedes ejecutar {name}?",
            "Usa {name}, por favor.",
            "Necesito {name}.",
        ),
        follow=(
            "Ahora necesito también {name}: {args}.",
            "Gracias. Después ejecuta {name} con {args}.",
        ),
        argument=(
            "{parameter} {value}",
            "{parameter} = {value}",
            "{parameter}: {value}",
        ),
        and_=" y ",
        missing=(
            "Para ejecutar {name} me falta {parameter}. ¿Cuál es el valor?",
            "¿Qué {parameter} uso para {name}?",
        ),
        give=("{args}.", "Usa {args}.", "Es {args}."),
        decline=(
            "Ninguna de las funciones que tengo puede hacer eso.",
            "Lo siento, no tengo ninguna herramienta para {name}.",
        ),
        answer=(
            "El resultado de {name} es {result}.",
            "Hecho: {name} ha dado {result}.",
        ),
        cities=("Madrid", "Sevilla", "Málaga", "León", "Logroño", "Las Palmas"),
        people=("Lucía Núñez", "Andrés Ibáñez", "Carmen Peña", "Hugo Martín"),
        things=(
            "lámpara azul",
            "informe anual",
            "silla de jardín",
            "mapa del río",
            "año nuevo",
        ),
    ),
    "ca": Language(
        "Catalan",
        ask=(
            "Pots executar {name} amb {args}?",
            "Fes servir {name}, si us plau: {args}.",
            "Necessito {name} amb {args}.",
            "Crida {name}; {args}.",
        ),
        ask_bare=(
            "Pots executar {name}?",
            "Fes servir {name}, si us plau.",
            "Necessito {name}.",
        ),
        follow=(
            "Ara també necessito {name}: {args}.",
            "Gràcies. Després executa {name} amb {args}.",
        ),
        argument=(
            "{parameter} {value}",
            "{parameter} = {value}",
            "{parameter}: {value}",
        ),
        and_=" i ",
        missing=(
            "Per executar {name} em falta {parameter}. Quin valor ha de tenir?",
            "Quin valor de {parameter} faig servir per a {name}?",
        ),
        give=("{args}.", "Fes servir {args}.", "És {args}."),
        decline=(
            "Cap de les funcions que tinc no pot fer això.",
            "Ho sento, no tinc cap eina per a {name}.",
        ),
        answer=("El resultat de {name} és {result}.", "Fet: {name} ha donat {result}."),
        cities=("Barcelona", "Girona", "Lleida", "Palma", "València", "Perpinyà"),
        people=("Núria Puig", "Jordi Solà", "Laia Vilà", "Bernat Roca"),
        things=(
            "làmpada blava",
            "informe anual",
            "cadira de jardí",
            "col·lecció nova",
            "pa i oli",
        ),
    ),
    "eu": Language(
        "Basque",
        ask=(
            "Exekutatu {name}, mesedez: {args}.",
            "{name} behar dut: {args}.",
            "Erabili {name}, mesedez; {args}.",
        ),
        ask_bare=("Exekutatu {name}, mesedez.", "{name} behar dut.", "Erabili {name}."),
        follow=(
            "Orain {name} ere behar dut: {args}.",
            "Eskerrik asko. Gero exekutatu {name}: {args}.",
        ),
        argument=(
            "{parameter} {value}",
            "{parameter} = {value}",
            "{parameter}: {value}",
        ),
        and_=" eta ",
        missing=(
            "{name} exekutatzeko {parameter} falta zait. Zein da balioa?",
            "Zein {parameter} erabili behar dut {name} egiteko?",
        ),
        give=("{args}.", "Erabili {args}.", "Hau da: {args}."),
        decline=(
            "Ditudan funtzioetako batek ere ezin du hori egin.",
            "Barkatu, ez daukat {name} egiteko tresnarik.",
        ),
        answer=("{name}: emaitza {result} da.", "Eginda: {name}, emaitza {result}."),
        cities=("Bilbo", "Donostia", "Gasteiz", "Iruñea", "Baiona", "Zarautz"),
        people=("Ane Etxeberria", "Mikel Agirre", "Maddi Iñurrieta", "Jon Zubia"),
        things=(
            "lanpara urdina",
            "urteko txostena",
            "lorategiko aulkia",
            "ibaiko mapa",
        ),
    ),
    "gl": Language(
        "Galician",
        ask=(
            "Podes executar {name} con {args}?",
            "Usa {name}, por favor: {args}.",
            "Preciso {name} con {args}.",
            "Chama a {name}; {args}.",
        ),
        ask_bare=(
            "Podes executar {name}?",
            "Usa {name}, por favor.",
            "Preciso {name}.",
        ),
        follow=(
            "Agora preciso tamén {name}: {args}.",
            "Grazas. Despois executa {name} con {args}.",
        ),
        argument=(
            "{parameter} {value}",
            "{parameter} = {value}",
            "{parameter}: {value}",
        ),
        and_=" e ",
        missing=(
            "Para executar {name} fáltame {parameter}. Cal é o valor?",
            "Que {parameter} uso para {name}?",
        ),
        give=("{args}.", "Usa {args}.", "É {args}."),
        decline=(
            "Ningunha das funcións que teño pode facer iso.",
            "Síntoo, non teño ningunha ferramenta para {name}.",
        ),
        answer=("O resultado de {name} é {result}.", "Feito: {name} deu {result}."),
        cities=("Vigo", "A Coruña", "Lugo", "Ourense", "Santiago", "Pontevedra"),
        people=("Sabela Castiñeira", "Brais Otero", "Noa Seoane", "Xoán Vilariño"),
        things=("lámpada azul", "informe anual", "cadeira de xardín", "mapa do río"),
    ),
}
