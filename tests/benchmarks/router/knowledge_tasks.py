"""Families about the world: capitals, elements, dates. A row of a pool is a level: common first."""

from __future__ import annotations

from family import Case, Dice, Family, words

CAPITALS = (
    "France Paris, Germany Berlin, Italy Rome, Spain Madrid, England London, Japan Tokyo, China "
    "Beijing, Russia Moscow, Egypt Cairo, Greece Athens, Ireland Dublin, Portugal Lisbon",
    "Sweden Stockholm, Norway Oslo, Austria Vienna, Poland Warsaw, Cuba Havana, Kenya Nairobi, "
    "Peru Lima, Turkey Ankara, Hungary Budapest, Denmark Copenhagen, Finland Helsinki, Iran "
    "Tehran",
    "Croatia Zagreb, Romania Bucharest, Bulgaria Sofia, Serbia Belgrade, Ecuador Quito, Morocco "
    "Rabat, Nigeria Abuja, Jordan Amman, Chile Santiago, Ghana Accra, Senegal Dakar, Uganda "
    "Kampala",
    "Slovakia Bratislava, Latvia Riga, Estonia Tallinn, Albania Tirana, Mongolia Ulaanbaatar, "
    "Zambia Lusaka, Paraguay Asuncion, Honduras Tegucigalpa, Oman Muscat, Mali Bamako, Slovenia "
    "Ljubljana, Laos Vientiane",
    "Malta Valletta, Bhutan Thimphu, Malawi Lilongwe, Botswana Gaborone, Suriname Paramaribo, "
    "Tajikistan Dushanbe, Burundi Gitega, Eritrea Asmara, Benin Porto-Novo, Moldova Chisinau, "
    "Tonga Nukualofa, Vanuatu Port-Vila",
)
ELEMENTS = (
    "hydrogen H, oxygen O, carbon C, nitrogen N, helium He, calcium Ca, neon Ne, iron Fe, gold "
    "Au, silver Ag, sulfur S, copper Cu",
    "sodium Na, potassium K, chlorine Cl, zinc Zn, lead Pb, magnesium Mg, aluminum Al, silicon "
    "Si, iodine I, mercury Hg, nickel Ni, tin Sn",
    "fluorine F, phosphorus P, lithium Li, uranium U, argon Ar, titanium Ti, boron B, bromine "
    "Br, platinum Pt, cobalt Co, krypton Kr, xenon Xe",
    "tungsten W, chromium Cr, manganese Mn, arsenic As, barium Ba, radium Ra, bismuth Bi, "
    "cadmium Cd, cesium Cs, beryllium Be, antimony Sb, selenium Se",
    "strontium Sr, zirconium Zr, molybdenum Mo, palladium Pd, rhodium Rh, yttrium Y, lanthanum "
    "La, osmium Os, hafnium Hf, ytterbium Yb, niobium Nb, tellurium Te",
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words(
    "January February March April May June July August September October November December"
)


def _capital(dice: Dice, level: int) -> Case:
    country, city = dice.pick([pair.split() for pair in CAPITALS[level - 1].split(", ")])
    return Case({"country": country}, city.replace("-V", " V"), also=(city,))


def _element(dice: Dice, level: int) -> Case:
    name, symbol = dice.pick([pair.split() for pair in ELEMENTS[level - 1].split(", ")])
    return Case({"name": name}, symbol)


def _date(dice: Dice, level: int) -> Case:
    day, month = dice.number(0, 6), dice.number(0, 11)
    n = dice.number(3, 6)
    task, answer = (
        (f"day comes after {DAYS[day]}", DAYS[(day + 1) % 7]),
        (f"month comes after {MONTHS[month]}", MONTHS[(month + 1) % 12]),
        (f"day comes before {DAYS[day]}", DAYS[day - 1]),
        (f"month comes before {MONTHS[month]}", MONTHS[month - 1]),
        (f"day comes {n} days after {DAYS[day]}", DAYS[(day + n) % 7]),
    )[level - 1]
    return Case({"task": task, "verb": task.replace(" comes ", " that comes ", 1)}, answer)


FAMILIES = (
    Family("capital", "lenient", 24, 1, _capital, """
        What is the capital of {country}? | The capital of {country} is {answer}.
        Name the capital city of {country}. | {answer}
        {country}'s capital is called what? | {answer}
        Which city is the capital of {country}? | {answer}
        Tell me the capital of {country}. | {answer}
        Country: {country}. Capital: | {answer}
        In which city does the government of {country} sit? | In {answer}.
        I am travelling to {country}. What is its capital? | {answer}
        Geography quiz: capital of {country}? | {answer}
        What city is {country}'s capital? | {answer}
    """),
    Family("element", "exact", 24, 2, _element, """
        What is the chemical symbol of {name}? | {answer}
        Give the symbol for {name}. | {answer}
        Chemical symbol for {name}: | {answer}
        Which symbol has {name} in the periodic table? | {answer}
        {name} -> | {answer}
        The symbol for the element {name} is | {answer}
        How is {name} abbreviated in chemistry? | {answer}
        Write the element symbol of {name}. | {answer}
        In chemistry, {name} is written | {answer}
        Symbol of {name}? | {answer}
    """),
    Family("date", "lenient", 24, 2, _date, """
        Which {task}? | {answer}
        Name the {verb}. | {answer}
        Tell me which {task}. | The {verb} is {answer}.
        What is the {verb}? | It is {answer}.
        Please say which {task}. | {answer}
        I want to know which {task}. | The {task} is {answer}.
        Calendar question: which {task}? | {answer}
        Give me the {verb}. | {answer}
        Do you know which {task}? | Yes, it is {answer}.
        Find the {verb}. | {answer}
    """),
)  # fmt: skip
