"""The sentences of the retrieval tasks in English, Spanish, Catalan, Basque and Galician."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """Sentences with `{}` fields; every sentence of a task begins on a line of its own.

    noise: sentences that say nothing of use, repeated as the haystack of the plainest tasks.
    needle, needle_question, needle_answer: `{key}` has the code `{value}`. The answer's
        text ends where the
        value begins. With several values or keys the value is a comma-separated list,
        in order of appearance.
    assign, copy: of variable tracking: a name is given a number, or what another name has.
    words, roots: two lists whose pairs make the keys ("quiet-harbour"), in the language.
    """

    noise: tuple[str, ...]
    instruction: str
    needle: str
    needle_question: str
    needle_answer: str
    values_question: str
    values_answer: str
    keys_question: str
    keys_answer: str
    assign: str
    copy: str
    variables_question: str
    variables_answer: str
    list_instruction: str
    common_question: str
    common_answer: str
    frequent_question: str
    frequent_answer: str
    fact: str
    hop: str
    fact_question: str
    hop_question: str
    fact_answer: str
    hop_answer: str
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_EN = Language(
    noise=(
        "The clouds drift slowly over the plain.",
        "A boat rests at the quay and nobody hurries.",
        "Bread is baked in the morning and sold at noon.",
        "The road bends twice before it meets the river.",
    ),
    instruction=(
        "Codes are hidden in the following text. "
        "Remember them: a question about them comes at the end."
    ),
    needle="The code of {key} is {value}.",
    needle_question="What is the code of {key} in the text above?",
    needle_answer="The code of {key} is",
    values_question="Which codes does the text above give for {key}?",
    values_answer="The codes of {key} are",
    keys_question="What are the codes of {key} in the text above?",
    keys_answer="The codes of {key} are",
    assign="The box {name} holds {value}.",
    copy="The box {name} holds what the box {other} holds.",
    variables_question="Which boxes hold {value} according to the text above?",
    variables_answer="The boxes that hold {value} are",
    list_instruction=(
        "Here is a list of words. "
        "Some of them come often. A question about them comes at the end."
    ),
    common_question="Which are the {count} most common words of the list above?",
    common_answer="The {count} most common words are",
    frequent_question="Which are the three most frequent coded words of the text above?",
    frequent_answer="The three most frequent words are",
    fact="Record {number}. {person} lives in {place} and keeps {thing}.",
    hop="Record {number}. {person} is a neighbour of {other}.",
    fact_question="According to the records above, what does {person} keep?",
    hop_question="According to the records above, what does the neighbour of {person} keep?",
    fact_answer="{person} keeps",
    hop_answer="The neighbour of {person} keeps",
    adjectives=_words(
        """
        quiet amber hollow narrow silver gentle rapid frozen distant copper bitter
        velvet sudden ancient golden humble lively marble northern patient purple
        rustic scarlet shallow simple solemn sturdy sunken tender wooden woven young
        """
    ),
    nouns=_words(
        """
        harbour lantern meadow orchard pebble ribbon saddle temple tunnel valley
        window anchor basket candle desert engine forest garden hammer island jacket
        kettle ladder mirror needle palace pillow rocket shadow stream ticket violin
        """
    ),
)

_ES = Language(
    noise=(
        "Las nubes pasan despacio sobre la llanura.",
        "Una barca descansa en el muelle y nadie tiene prisa.",
        "El pan se hace por la mañana y se vende a mediodía.",
        "El camino gira dos veces antes de llegar al río.",
    ),
    instruction=(
        "En el texto siguiente hay códigos escondidos. "
        "Recuérdalos: al final se pregunta por ellos."
    ),
    needle="El código de {key} es {value}.",
    needle_question="¿Cuál es el código de {key} en el texto anterior?",
    needle_answer="El código de {key} es",
    values_question="¿Qué códigos da el texto anterior para {key}?",
    values_answer="Los códigos de {key} son",
    keys_question="¿Cuáles son los códigos de {key} en el texto anterior?",
    keys_answer="Los códigos de {key} son",
    assign="La caja {name} contiene {value}.",
    copy="La caja {name} contiene lo que contiene la caja {other}.",
    variables_question="¿Qué cajas contienen {value} según el texto anterior?",
    variables_answer="Las cajas que contienen {value} son",
    list_instruction=(
        "Esta es una lista de palabras. "
        "Algunas se repiten mucho. Al final se pregunta por ellas."
    ),
    common_question="¿Cuáles son las {count} palabras más comunes de la lista anterior?",
    common_answer="Las {count} palabras más comunes son",
    frequent_question="¿Cuáles son las tres palabras cifradas más frecuentes del texto anterior?",
    frequent_answer="Las tres palabras más frecuentes son",
    fact="Ficha {number}. {person} vive en {place} y guarda {thing}.",
    hop="Ficha {number}. {person} es vecino de {other}.",
    fact_question="Según las fichas anteriores, ¿qué guarda {person}?",
    hop_question="Según las fichas anteriores, ¿qué guarda el vecino de {person}?",
    fact_answer="{person} guarda",
    hop_answer="El vecino de {person} guarda",
    adjectives=_words(
        """
        azul verde gris fuerte suave alegre triste grande breve dulce noble libre
        humilde brillante caliente salvaje tenue firme simple leve ágil amable
        celeste feliz fiel frágil gentil joven mortal rural veloz vital
        """
    ),
    nouns=_words(
        """
        puerto farol prado huerto cinta templo túnel valle ventana ancla cesta vela
        desierto motor bosque jardín martillo isla abrigo escalera espejo aguja
        palacio almohada cohete sombra arroyo billete violín puente molino campana
        """
    ),
)

_CA = Language(
    noise=(
        "Els núvols passen a poc a poc sobre la plana.",
        "Una barca reposa al moll i ningú no té pressa.",
        "El pa es fa al matí i es ven al migdia.",
        "El camí gira dues vegades abans d'arribar al riu.",
    ),
    instruction=(
        "En el text següent hi ha codis amagats. "
        "Recorda'ls: al final se'n fa una pregunta."
    ),
    needle="El codi de {key} és {value}.",
    needle_question="Quin és el codi de {key} en el text anterior?",
    needle_answer="El codi de {key} és",
    values_question="Quins codis dona el text anterior per a {key}?",
    values_answer="Els codis de {key} són",
    keys_question="Quins són els codis de {key} en el text anterior?",
    keys_answer="Els codis de {key} són",
    assign="La caixa {name} conté {value}.",
    copy="La caixa {name} conté el que conté la caixa {other}.",
    variables_question="Quines caixes contenen {value} segons el text anterior?",
    variables_answer="Les caixes que contenen {value} són",
    list_instruction=(
        "Aquesta és una llista de paraules. "
        "Algunes es repeteixen molt. Al final se'n fa una pregunta."
    ),
    common_question="Quines són les {count} paraules més comunes de la llista anterior?",
    common_answer="Les {count} paraules més comunes són",
    frequent_question="Quines són les tres paraules xifrades més freqüents del text anterior?",
    frequent_answer="Les tres paraules més freqüents són",
    fact="Fitxa {number}. {person} viu a {place} i guarda {thing}.",
    hop="Fitxa {number}. {person} és veí de {other}.",
    fact_question="Segons les fitxes anteriors, què guarda {person}?",
    hop_question="Segons les fitxes anteriors, què guarda el veí de {person}?",
    fact_answer="{person} guarda",
    hop_answer="El veí de {person} guarda",
    adjectives=_words(
        """
        blau verd gris fort suau alegre trist gran breu dolç noble lliure humil
        brillant calent salvatge tènue ferm simple lleu àgil amable celest feliç
        fidel fràgil gentil jove mortal rural veloç vital
        """
    ),
    nouns=_words(
        """
        port fanal prat hort cinta temple túnel vall finestra àncora cistella
        espelma desert motor bosc jardí martell illa abric escala mirall agulla
        palau coixí coet ombra rierol bitllet violí pont molí campana
        """
    ),
)

_EU = Language(
    noise=(
        "Hodeiak poliki igarotzen dira lautadaren gainetik.",
        "Ontzi bat kaian dago eta inork ez du presarik.",
        "Ogia goizean egiten da eta eguerdian saltzen da.",
        "Bideak bi aldiz biratzen du ibaira iritsi aurretik.",
    ),
    instruction=(
        "Hurrengo testuan kodeak daude ezkutatuta. "
        "Gogoratu: amaieran haiei buruzko galdera dator."
    ),
    needle="Kode hau dagokio {key} izenari: {value}.",
    needle_question="Zein kode dagokio {key} izenari goiko testuan?",
    needle_answer="Kode hau dagokio {key} izenari:",
    values_question="Zein kode ematen ditu goiko testuak {key} izenarentzat?",
    values_answer="Kode hauek dagozkio {key} izenari:",
    keys_question="Zein kode dagozkie izen hauei goiko testuan: {key}?",
    keys_answer="Kode hauek dagozkie izen hauei, {key}:",
    assign="Kutxa honetan, {name}, hau dago: {value}.",
    copy="Kutxa honetan, {name}, beste kutxa honetan dagoena dago: {other}.",
    variables_question="Zein kutxatan dago {value} goiko testuaren arabera?",
    variables_answer="Kutxa hauetan dago {value}:",
    list_instruction=(
        "Hona hemen hitzen zerrenda bat. "
        "Batzuk askotan agertzen dira. Amaieran galdera bat dator."
    ),
    common_question="Zein dira goiko zerrendako {count} hitz ohikoenak?",
    common_answer="Hauek dira {count} hitz ohikoenak:",
    frequent_question="Zein dira goiko testuko hiru hitz kodetu ohikoenak?",
    frequent_answer="Hauek dira hiru hitz ohikoenak:",
    fact="Fitxa {number}. {person} hemen bizi da: {place}. Hau gordetzen du: {thing}.",
    hop="Fitxa {number}. {person} honen bizilaguna da: {other}.",
    fact_question="Goiko fitxen arabera, zer gordetzen du {person} izenekoak?",
    hop_question="Goiko fitxen arabera, zer gordetzen du {person} izenekoaren bizilagunak?",
    fact_answer="Hau gordetzen du {person} izenekoak:",
    hop_answer="Hau gordetzen du {person} izenekoaren bizilagunak:",
    adjectives=_words(
        """
        urdin berde gris indartsu leun alai triste handi labur gozo noble aske apal
        distiratsu bero basati ahul sendo soil arin azkar atsegin zabal zoriontsu
        leial hauskor xume gazte zahar luze motz hotz
        """
    ),
    nouns=_words(
        """
        portu farol belardi baratze zinta tenplu tunel haran leiho aingura saski
        kandela basamortu motor baso lorategi mailu uharte berokia eskailera ispilu
        orratz jauregi burko suziri itzal erreka txartel biolin zubi errota kanpai
        """
    ),
)

_GL = Language(
    noise=(
        "As nubes pasan amodo sobre a chaira.",
        "Unha barca descansa no peirao e ninguén ten présa.",
        "O pan faise pola mañá e véndese ao mediodía.",
        "O camiño xira dúas veces antes de chegar ao río.",
    ),
    instruction=(
        "No texto seguinte hai códigos agochados. "
        "Lémbraos: ao final pregúntase por eles."
    ),
    needle="O código de {key} é {value}.",
    needle_question="Cal é o código de {key} no texto anterior?",
    needle_answer="O código de {key} é",
    values_question="Que códigos dá o texto anterior para {key}?",
    values_answer="Os códigos de {key} son",
    keys_question="Cales son os códigos de {key} no texto anterior?",
    keys_answer="Os códigos de {key} son",
    assign="A caixa {name} contén {value}.",
    copy="A caixa {name} contén o que contén a caixa {other}.",
    variables_question="Que caixas conteñen {value} segundo o texto anterior?",
    variables_answer="As caixas que conteñen {value} son",
    list_instruction=(
        "Esta é unha lista de palabras. "
        "Algunhas repítense moito. Ao final pregúntase por elas."
    ),
    common_question="Cales son as {count} palabras máis comúns da lista anterior?",
    common_answer="As {count} palabras máis comúns son",
    frequent_question="Cales son as tres palabras cifradas máis frecuentes do texto anterior?",
    frequent_answer="As tres palabras máis frecuentes son",
    fact="Ficha {number}. {person} vive en {place} e garda {thing}.",
    hop="Ficha {number}. {person} é veciño de {other}.",
    fact_question="Segundo as fichas anteriores, que garda {person}?",
    hop_question="Segundo as fichas anteriores, que garda o veciño de {person}?",
    fact_answer="{person} garda",
    hop_answer="O veciño de {person} garda",
    adjectives=_words(
        """
        azul verde gris forte suave alegre triste grande breve doce nobre libre
        humilde brillante quente salvaxe tenue firme simple leve áxil amable celeste
        feliz fiel fráxil xentil xove mortal rural veloz vital
        """
    ),
    nouns=_words(
        """
        porto farol prado horto cinta templo túnel val xanela áncora cesta vela
        deserto motor bosque xardín martelo illa abrigo escaleira espello agulla
        pazo almofada foguete sombra regato billete violín ponte muíño campá
        """
    ),
)

LANGUAGES: dict[str, Language] = {"en": _EN, "es": _ES, "ca": _CA, "eu": _EU, "gl": _GL}
