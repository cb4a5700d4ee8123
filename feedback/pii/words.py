"""Word lists: names, and capitalised words that are no person.

Those written here are short on purpose. The model finds most names; these lists settle what it is
unsure of: a lone or lower-case given name, a sentence's first word, an eponym, a product. The two
files beside are names of the United States census of 1990 (public domain), without those that are
common words, places or products.
"""

from pathlib import Path


def word_set(text: str) -> frozenset[str]:
    """The words of a text, each once."""
    return frozenset(text.split())


def listed(file: str) -> frozenset[str]:
    """The words of a list beside this file, one a line, in lower case."""
    return word_set((Path(__file__).parent / file).read_text("utf-8"))


SURE_NAMES = word_set(
    """
    aaron abdul abdullah abigail adele adriana agnes agnieszka ahmed aisha akiko alan albert
    alejandro aleksander alessandro alfred alice alicia alison alistair amanda amelia amina
    amir amy ana anastasia anders andrea andreas andrei andrew andrzej angela anita anjali
    anna annabelle anne annette annika anthony antoine antonia antonio anya arjun arthur
    arturo astrid audrey ayesha barbara beatrice beatriz benjamin bernard bernadette bettina
    björn bogdan boris brendan brian bridget bruno camila camille carla carlos carmen carol
    caroline catherine cecilia charles charlotte chloe christina christine christopher ciara
    claire clara claudia colin connor cristina cynthia daniel daniela danielle david deborah
    deepak denise dennis derek diana diego dimitri dmitri dolores dominic donald dorothy
    douglas duncan edgar eduardo edward eileen elaine eleanor elena elif elisabeth elizabeth
    ellen emily emma enrique eric erik erika esther ethan eugene eva evelyn fatima federico
    felipe fernando fiona florian frances francesca francesco francisco francois françois
    frank franz frederick freya friedrich gabriel gabriela gareth geoffrey george gerald
    gerard gianna giovanni giulia gloria gordon greta gregory guadalupe guillermo gustavo
    hannah hans harold harriet harry hassan heather heidi helen helena helga henrik henry
    hiroshi howard hugo hussein ian ibrahim ignacio igor ilse imran ingrid irene irina isaac
    isabel isabella isabelle ivan jacob jacqueline jakub james jamal jan jane janet janice
    jason javier jean jeffrey jennifer jeremy jessica joan joanna johan johann johanna john
    jonas jonathan jorge josé jose josef joseph joshua juan juanita judith julian juliette
    jürgen karen karin karl katarzyna kate katherine kathleen kathryn katja keiko keith
    kenneth kevin khalid kimberly kiran klaus krzysztof kumar kwame kyle lakshmi lara lars
    laura lauren laurence leila leonardo leonard lisa liam lindsay linda ludwig luca lucas
    lucia lucy luigi luis luisa lukas łukasz magdalena małgorzata manuel manuela marcel marcin
    marco marcus margaret margarita maria mariam marie marek marianne mario marion marjorie
    marlene marta martha martin martina mary mateo matteo matthew matthias maureen maurice max
    megan mehmet melissa michael michał michel michelle miguel mikael mohamed mohammed
    mohammad muhammad monica monika mustafa nadia nancy naomi natalia natalie natasha neha
    neil nicholas nicola nicole nigel nikhil nikolai niamh nora norman oksana olga oliver
    olivia omar oscar otto pablo pamela patricia patrick paul paula paulina paulo pavel pedro
    penelope peter petra philip philippe pierre piotr priya rachel raj rajesh ralph ramon
    raphael rashid raúl rebecca renata renee ricardo richard rita robert roberto rodrigo roger
    roland ronald rosa rosalind rosemary ruth ryan sabine samantha samuel sandeep sandra
    sanjay sara sarah satoshi sean sebastian sergei sergio shannon sharon sheila shirley
    siobhan simone sofia sonia sophie stanisław stefan stephanie stephen steven stuart sunita
    susan suresh suzanne svetlana sven sylvia takeshi tamara tanya tatiana teresa theodore
    theresa thomas tiffany timothy tobias tomasz tom tommy tony tracy ulrike ursula valentina
    valerie vanessa veronica vijay viktor vincent vladimir walter wanda wendy werner wilhelm
    william wojciech xavier yasmin yolanda yusuf yuki yuri yvonne zainab zoe zofia bob jim joe
    steve dave mike ben sam kim lee jenny becky debbie katie annie abby andy chris greg jeff
    kathy larry jerry alex nina mia ella leo noah mei ming wei xiu jun hana ravi arun anil
    sunil meera nisha pooja rohan sita ali leyla oluwaseun chinedu ngozi kofi ama adaeze
    thandiwe sipho
    """
)

MAYBE_NAMES = word_set(
    """
    will may mark grace rose paris georgia virginia jack bill chase hope faith joy april june
    august austin jordan chelsea sydney dallas madison lincoln dean ray rob pat art gene sue
    dawn eve iris ivy lily violet daisy olive ruby pearl amber crystal jade holly heath glen
    cliff dale wade lane reed rich miles mason carter hunter taylor tyler parker cooper walker
    baker summer autumn victoria florence charity christian destiny genesis harmony melody
    nick drew wade roman angel jesus guy king prince earl duke julia pascal ada jasmine travis
    alexa siri adam simon isaac scala dot max frank sky skip gale rocky rusty sandy penny
    robin martin harry victor major judge bishop page stone brook sage basil ginger jean ken
    don ron al ed ted van ian jan lee kim sam ali tom jay kay ann mercedes milan india china
    israel kelly shelby lance grant miller clay chip chuck
    """
)

STARTERS = word_set(
    """
    a about above according actually add additionally after again against all almost along
    already also although always am among an analyse analyze and another answer any anyone
    anything apply are around as ask assume at attach avoid back bake based be because become
    been before begin below best better between beyond boil both bring brown build but buy by
    calculate call can cannot change check choose chop classify clean click combine come
    compare complete compose compute consider construct continue convert cook cool copy
    correct could count cover create cut debug decide define delete derive describe design
    despite determine develop did differentiate discuss divide do does don done draft drain
    draw drop during each earlier edit either else eat end ensure enter estimate evaluate even
    every everyone everything evaluate examine except expand explain express extract factor
    few fill final finally find finish first fix fold follow following for format found from
    fry full further gave generate get give given go goes good got graph great grate guess had
    happy has have he heat hello help hence her here hers hey hi his hold how however i
    identify if imagine implement import improve in include indeed inside insert instead
    integrate into introduce is it its join just keep kindly know last later learn least leave
    less let lets like limit line list listen little live load long look looking made main
    make many match maximum me mean meanwhile meet melt merge might minimum mix more moreover
    most much multiply must my name near need neither never new next no nobody none nor not
    note nothing now of off offer often oh ok okay old on once one only open or order other
    otherwise our out outline outside over own parse part pass people perhaps pick place plan
    play please point pour predict prepare present press print probably produce proofread
    propose prove provide put question quickly quite raise rather read ready really recall
    recently recommend reduce refactor regarding remember remove rename repeat rephrase
    replace reply report return review rewrite right roast run said same save say search
    season second see select send sentence serve set several shall she shorten should show
    simmer simplify simulate since sketch slice so solve some someone something sometimes soon
    sort speak split sprinkle start state step still stir stop store strong such suggest sum
    summarise summarize support suppose sure switch take talk tell test than thank thanks that
    the their them then there therefore these they thing think third this those though thought
    three through thus time tip to today together tomorrow too total toward train transform
    translate treat true try turn two type typical under understand unless until up update
    upon us use used using usually verify very view visit wait want warm was wash watch we
    weigh well went were what whatever when whenever where whereas whether which while whisk
    who whoever whole whom whose why wish with within without wonder work would write wrote
    yes yesterday yet you your yours dear regards sincerely cheers love yo team user assistant
    system human bot input output example answer summary context instruction problem solution
    task title subject agenda mine theirs vacuum item items budget hiring chapter minutes
    chair billing subtotal total reminder reason result results world folks guys team date
    address phone email contact patient customer client student teacher doctor nurse manager
    employee name names notes todo paid
    """
)

NOT_PEOPLE = word_set(
    """
    monday tuesday wednesday thursday friday saturday sunday january february march april may
    june july august september october november december english french german spanish italian
    portuguese dutch polish russian chinese japanese korean arabic hindi latin greek turkish
    swedish american british european african asian indian mexican irish scottish canadian
    australian roman victorian christian america europe africa asia australia canada mexico
    brazil argentina england scotland wales ireland britain london manchester france paris
    lyon germany berlin munich hamburg spain madrid barcelona italy rome milan venice naples
    poland warsaw netherlands amsterdam belgium brussels switzerland zurich geneva austria
    vienna sweden stockholm norway oslo denmark copenhagen finland helsinki portugal lisbon
    greece athens russia moscow ukraine kyiv china beijing shanghai japan tokyo kyoto korea
    seoul india delhi mumbai bangalore boston chicago seattle denver dallas houston austin
    miami atlanta phoenix portland oakland york jersey california texas florida washington
    virginia georgia carolina dakota ohio michigan oregon nevada hawaii alaska sydney
    melbourne toronto vancouver montreal dublin edinburgh glasgow cairo lagos nairobi israel
    jerusalem turkey istanbul egypt hoboken springfield city lake mount python java javascript
    typescript rust golang ruby perl scala kotlin swift haskell julia pascal fortran cobol lua
    bash sql mysql postgres postgresql sqlite redis kafka docker kubernetes linux ubuntu
    debian windows mac macos android ios git github gitlab google apple microsoft amazon
    facebook meta netflix tesla openai anthropic nvidia intel ibm oracle samsung sony adobe
    twitter instagram youtube linkedin slack zoom excel word powerpoint outlook gmail chrome
    firefox safari django flask fastapi react vue angular node numpy pandas pytorch tensorflow
    keras scikit spark hadoop airflow jenkins travis ansible terraform selenium junit pytest
    newton einstein euler gauss fourier laplace bayes markov bernoulli poisson fibonacci
    pythagoras pythagorean euclid riemann hilbert turing boltzmann maxwell planck schrodinger
    schrödinger heisenberg kepler doppler ohm joule watt hertz pascal kelvin celsius
    fahrenheit faraday ampere volt coulomb tesla darwin mendel pasteur curie galileo
    copernicus aristotle plato socrates shakespeare mozart beethoven bach picasso monet
    napoleon caesar cleopatra freud marx kant nietzsche descartes avogadro hooke bohr fermi
    dijkstra kruskal gaussian bayesian cartesian taylor lagrange hamilton jacobi cauchy
    lebesgue nash pareto zipf venn dirichlet christmas easter halloween thanksgiving hanukkah
    ramadan diwali bible quran god lord jesus allah buddha moses earth moon sun mars venus
    jupiter saturn mercury neptune uranus pluto milky nobel olympic olympics covid internet
    web nasa nato parmesan cheddar dijon caesar worcestershire alfredo bolognese carbonara
    marinara oreo nutella tabasco flour butter vanilla sugar salt pepper brownies model adam
    sgd relu lasso ridge elasticnet transformer bert gpt llama claude gemini alexa siri
    cortana error exception class function table figure section chapter part step act scene
    section equation theorem lemma north south east west university college school hospital
    church museum bank company street road avenue park river bridge hotel restaurant inc ltd
    llc corp gmbh mobile tel telephone fax website cell home work office billing shipping
    delivery order payment visa passport iban card ip service side union interface care portal
    support id guide experience story satisfaction relations data code studio visual war world
    mom dad mum mama papa grandma grandpa aunt uncle sir madam mr mrs ms miss dr prof hr ceo
    cto cfo pdf html css json xml csv api url sherlock holmes hamlet romeo juliet macbeth
    othello gatsby frankenstein dracula batman superman santa cinderella alice-in-wonderland
    """
)

GIVEN_NAMES = SURE_NAMES | listed("given_names.txt")
FAMILY_NAMES = listed("family_names.txt")
