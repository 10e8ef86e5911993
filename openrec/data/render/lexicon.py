# ruff: noqa: E501, SIM905 (wide characters count double; lists of words read better as text)
"""Words without a word list: common signs, syllables to build pseudo-words from, patterns for numbers.

Enough to train on a machine that has no dictionary. The weights are rough guesses at street text.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

SIGNS = {
    "en": """
    able about above academy access across adult after again agency airport alarm album alert all allow always and
    angle animal annual apple april area around arrive art ask august author auto avenue away baby back bag baker
    bakery ball banana bank bar barber basket bath beach bean bear beauty bed beef beer before bell below best better
    between beyond bicycle big bike bill bird black blend block blue board boat body book boot born both bottle
    boutique bowl box boy bread break breakfast bridge bright bring broken brother brown brush budget build burger
    bus business busy butter buy cabin cable cafe cake call camera camp can candle candy car card care cargo carpet
    cash castle cat caution cell center centre central century chain chair change charge cheap check cheese chef
    chicken child chips choice church cinema circle city class classic clean clear clinic clock close closed cloth
    cloud club coach coast coffee cold collect college colour comfort common company concert control cook cool copper
    copy corn corner cost cotton count country court cover cream credit cross crown cup custom cut daily dance danger
    dark data date day deal december deep delight deliver dental depot design desk detour diamond diesel digital
    dinner direct discount dish district doctor dog dollar door double down downtown dragon dream dress drink drive
    drop dry duty each early east easy edge egg eight electric eleven empty energy engine english enjoy enter entry
    equal event every exit expert express extra eye face factory fair fall family famous fan farm fashion fast
    february feed fence festival few field fifty film final find fine fire first fish fit five fix flag flat floor
    flower fly food foot force forest fork forty forward four free fresh friday friend from front fruit fuel full
    fun future gallery game garage garden gas gate gift girl give glass global gold golf good grand grape gray great
    green grill grocery ground group guard guest guide gym hair half hall hand happy harbor hard hat have head health
    heart heat heavy height hello help here high highway hill holiday home honey hope horse hospital host hot hotel
    hour house hundred hunt ice idea image indoor info inn insurance island january jazz jeans jewel job juice july
    jump june junior just keep key kids king kiosk kitchen knife lab lake lamp land lane large laser last late laundry
    law leaf learn leather left lemon level library life lift light lime limit line lion list little live local lock
    long look lost lotion lounge love low lucky lunch luxury machine made magic mail main mall manager map marble
    march market master may meal meat media medical meet member menu metal metro middle milk mind mini minute mirror
    mobile model modern moment monday money month moon more morning motel motor mountain mouth movie museum music
    nail name natural near need net never new news next night nine noodle normal north nose note notice november now
    number nurse nut ocean october off office oil old olive one only open optical orange order organic other our out
    outlet over own pack paint palace panda paper parcel park parking part party pass pasta path pay peace pearl pedal
    pen people pepper perfect person pet pharmacy phone photo piano pick picnic pilot pink pipe pizza place plan plant
    plastic plate play plaza please plus point police pool port post potato pound power premium present press price
    prime print private prize product program public pull pump pure purple push quality quarter queen quick quiet
    rabbit race radio rail rain ramp rate read ready real record red reduce regular relax rent repair rescue rest
    restaurant retail return rice rich ride right ring rise river road rock roll roof room rose round route royal
    rule run safe safety salad sale salon salt same sand sandwich saturday sauce save school science screen sea seat
    second secret sell send senior september serve service seven shade shake shape share sharp ship shirt shoe shop
    short show shower shuttle side sign silk silver simple since sing single six size skin sky slow small smart smile
    smoke snack snow soap social soda soft sold solid song soup south space spa special speed spice sport spot spring
    square stadium staff stage stairs stamp star start state station stay steak steel step stone stop store storm
    street strong student studio style subway sugar suit summer sun sunday super supply sweet swim system table tail
    take talk tank tap target taste tax taxi tea team tech ten tennis terminal test thank the theatre their there
    thing think thirty this three thursday ticket tiger time tire today toilet tomato tool top total touch tour towel
    tower town toy track trade traffic trail train transit travel tree trend trip truck trust tuesday tunnel turn
    twelve twenty two type ultra uncle under union unit university upper urban use value van vegan very video view
    village vintage vip visa visit vista wait walk wall warm warning wash waste watch water wave way wear web
    wednesday week welcome west what wheel when where white who wide wild win wind window wine winter wireless with
    woman wonder wood wool word work world wrap yard year yellow yes yoga young your zero zone zoo
    """,
    "ko": """
    가게 가격 가구 가방 가족 간식 감사 강남 강변 개점 건강 건물 결제 경고 경찰 계단 계산대 고객 고기 고속도로 공원 공사중 공항
    과일 관광 관리 광장 교육 교회 구두 구청 국수 국밥 굴비 금연 금지 기념품 기차 김밥 김치 꽃집 나무 남대문 냉면 노래방 놀이터
    농협 다방 닭갈비 당기시오 대문 대학교 도서관 도시락 도착 독서실 돈까스 동물병원 동대문 된장 두부 등산 떡볶이 라면 마을 마트
    막걸리 만두 매운탕 매표소 맥주 머리 면세점 모텔 목욕탕 무료 문구 문화 미술관 미시오 미용실 민박 바다 박물관 반찬 방앗간 배달
    백화점 버스 보건소 보험 복사 부동산 분식 불고기 비상구 빵집 사거리 사랑 사진관 산업 삼겹살 상가 상담 생선 서비스 서울 서점
    선물 설렁탕 세탁소 셀프 소방서 소아과 소주 손님 수리 수산 수선 순두부 슈퍼 시장 식당 식품 신발 신호등 아이스크림 아파트
    안경 안내 안전 약국 양복 어린이집 언덕 업소용 여관 역사 연구소 열쇠 영업중 영화관 옷가게 외환 요리 우동 우체국 운동장
    원조 월세 위험 유치원 은행 음식점 의원 의자 이발관 인쇄 인천 일방통행 임대 입구 자동문 자전거 작업 잔치 장난감 전기 전문
    전화 정류장 정육점 정형외과 제과 제주 조심 족발 주차장 주유소 주의 중고 중앙 지하철 직진 직행 짜장면 찜질방 천천히 철물 청소
    체육관 촬영 추어탕 출구 출입금지 충전소 치과 치킨 침대 카페 칼국수 커피 컴퓨터 코너 콩나물 택시 터미널 통닭 통신 통행 특가
    판매 편의점 평생 포장 표지판 피자 피부과 학교 학생 학원 한국 한식 한우 할인 항구 해물 해장국 행사 헬스 현금 호텔 화장실
    화장품 환영 회관 회사 횟집 횡단보도 휴게소 휴대폰 휴무 휴지통
    """,
    "zh": """
    安全 安全出口 按摩 奥运 白酒 百货 百货大楼 班车 包子 宝石 保险 报刊 北京 北路 本店 宾馆 冰淇淋 博物馆 不锈钢 菜单 参观 餐厅
    餐饮 茶叶 茶楼 超市 车站 成都 城市 出口 出入平安 出租 厨房 窗口 床上用品 瓷砖 大厦 大学 大酒店 大药房 当心触电 地铁 地铁站
    地下停车场 灯饰 点心 电话 电脑 电器 电梯 电影院 店铺 东方 东路 豆浆 豆腐 渡口 儿童 二手房 发展 法院 饭店 房屋 房产 非机动车
    风景 服务 服务中心 服装 福建 干洗 钢材 高速公路 个人 工厂 工程 工商银行 公安 公交 公司 公园 公厕 姑娘 古城 古玩 顾客 观光
    广场 广告 广州 国际 国家 果汁 海鲜 汉堡 航空 和谐 河南 红绿灯 红烧肉 湖北 互联网 花店 花园 华联 化妆品 欢迎光临 欢迎 环境
    黄金 会议室 火车 火锅 机场 鸡肉 集团 加油站 家具 家园 家常菜 减速慢行 建设 建设银行 健康 健身房 江南 将军 奖品 交通 教室
    教育 街道 节约用水 金融 禁止吸烟 禁止停车 经济 经理 精品 景区 警察 酒店 酒吧 居民 咖啡 开放 烤鸭 科技 科学 客房 空调 快餐
    快递 快乐 兰州拉面 老字号 冷饮 礼品 理发 历史 联系电话 粮油 凉茶 零食 领导 楼层 路口 旅馆 旅游 律师 绿色 麻辣烫 马路 卖场
    美发 美食 美容 门诊 米饭 米线 免费 面包 面馆 民族 名牌 摩托车 南京 男装 内部 牛奶 牛肉面 农业银行 农民 女装 派出所 批发
    皮鞋 啤酒 拼搏 品质 葡萄 普通 汽车 汽修 青年 轻轨 清真 全场 全国 人民 人民医院 日用品 肉类 入口 软件 商场 商店 商务 上海
    社区 设备 设计 摄影 深圳 生活 生态 师范 施工 时尚 食品 食堂 世界 市场 市政府 收费站 收银台 手机 书店 蔬菜 水果 水饺 司法
    私房菜 四川 宿舍 素食 台湾 糖果 特产 特价 体育 天津 甜品 停车 停车场 通道 通信 童装 投资 图书馆 推拿 外贸 网吧 危险 微信
    卫生间 文化 文明 温泉 文具 我们 五金 武汉 物业 西安 西餐 洗手间 洗衣 系列 鲜花 现代 香港 消防 小吃 小区 小心 小学 鞋业 新华
    新闻 信息 行李 幸福 休闲 学生 学校 烟酒 严禁烟火 研究所 眼镜 羊肉 药店 业务 医疗 医院 移动 艺术 银行 饮料 英语 营业 营业厅
    影院 邮政 游客 游泳 友谊 鱼头 娱乐 浴室 元宵 园林 云南 运动 早餐 炸鸡 招聘 招商 折扣 浙江 正门 政府 职业 纸巾 制造 质量
    中国 中国移动 中山 中心 中学 中药 中央 重庆 粥店 珠宝 主任 住宅 注意 专卖 专业 装饰 装修 自行车 自助 综合 足浴 左转 作坊
    """,
}

# 9: digit, A: capital, a: small letter; everything else stands for itself.
PATTERNS = (
    "9 99 99 999 999 9999 9999 99999 999999 A9 A99 9A 99A A999 AA99 AA999 AAA999 A9A9 99-99 99-99 #99-99 9-99 999-9999 "
    "$9 $99 $9.99 $99.99 $999 9.99 99.9 99% 99% 9.9% 99:99 9:99 99/99 99/99/99 99.99.9999 (99) [99] #9 #99 No.9 No.99 "
    "+99 999.999 9,999 $9,999 9kg 99m 99km 9am 9pm 99g 9L A-9 A/A A&A A&A A.A. 9x9 *99 99+ 99° €9 £99 ¥999 ₩9,999 "
    "a@a.aaa www.aaaa.aaa @aaaaa #aaaa 9st 9th a-aaa"
).split()  # fmt: skip

_ENGLISH = [
    # onsets, vowels, codas; repetition is weight
    "b b c c d d f g h j k l l m m n n p p qu r r r s s s t t t v w y z bl br ch ch cl cr dr fl fr gl gr pl pr "
    "ph sc sh sh sk sl sm sn sp st st str sw th th tr wh".split()
    + [""] * 12,
    "a a a a e e e e e i i i o o o u u y ai ea ea ee ie oa oo ou au ay ey ow".split(),
    "b ck ct d d f ft g k l l l ld lk ll lt m m mp n n n n nd ng nk nt p pt r r r rd rk rm rn rt s s ss st st t t "
    "th ve x zz ce ge ne re te se le".split()
    + [""] * 24,
]
_ENDINGS = "ing er er ed es s ly tion al able ment ness y ous ic ist ity or en ful less ate ish".split() + [""] * 40

# Hangul: numbers of jamo in the order of Unicode's composition formula, with weights.
_INITIALS = np.array([10, 1, 5, 7, 1, 5, 6, 7, 1, 10, 1, 14, 9, 1, 4, 2, 3, 3, 8], float)
_MEDIALS = np.array([18, 6, 1.5, 0.3, 11, 4, 5, 1, 12, 2, 0.4, 1.2, 2, 8, 1, 0.3, 1.5, 1, 9, 1, 15], float)
_FINALS = np.array(
    [45, 7, 0.2, 0.1, 13, 0.1, 0.3, 0.4, 8, 0.2, 0.1, 0.1, 0.05, 0.1, 0.05, 0.1, 6, 3.5, 0.3, 2, 1.5, 11, 0.3, 0.2,
     0.1, 0.4, 0.3, 0.4]
)  # fmt: skip


@lru_cache(maxsize=4)
def script_characters(language: str) -> str:
    """The script's common characters: KS X 1001 Hangul (2,350), GB 2312 level 1 (3,755), else ASCII letters."""
    if language == "ko":
        return "".join(bytes((row, cell)).decode("euc_kr") for row in range(0xB0, 0xC9) for cell in range(0xA1, 0xFF))
    if language == "zh":
        cells = ((row, cell) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF))
        return "".join(bytes(pair).decode("gb2312", "ignore") for pair in cells)
    return "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def default_characters(language: str) -> str:
    """What a renderer draws when no charset is given."""
    ascii_printable = "".join(chr(c) for c in range(33, 127))
    return ascii_printable + (script_characters(language) if language in ("ko", "zh") else "")


def signs(language: str) -> list[str]:
    return SIGNS.get(language, "").split()


def _one(rng: np.random.Generator, items: list[str]) -> str:
    return items[int(rng.integers(len(items)))]


def english_word(rng: np.random.Generator, length: int) -> str:
    """A pronounceable pseudo-word of exactly ``length`` letters."""
    ending = _one(rng, _ENDINGS)
    if len(ending) > length - 2:
        ending = ""
    word = ""
    while len(word) < length - len(ending):
        word += "".join(_one(rng, part) for part in _ENGLISH)
    return word[: length - len(ending)] + ending


@lru_cache(maxsize=1)
def _jamo_steps() -> tuple[np.ndarray, ...]:
    return tuple(np.cumsum(weights / weights.sum()) for weights in (_INITIALS, _MEDIALS, _FINALS))


def hangul_syllable(rng: np.random.Generator) -> str:
    """A syllable composed of jamo by weight; rare combinations occur."""
    steps = _jamo_steps()
    initial, medial, final = (min(int(np.searchsorted(step, rng.random())), len(step) - 1) for step in steps)
    return chr(0xAC00 + (initial * 21 + medial) * 28 + final)


def fits(word: str, allowed: frozenset[str] | set[str], lengths: Iterable[int] | None = None) -> bool:
    """Whether every character is allowed and the length is one of ``lengths``."""
    return bool(word) and allowed.issuperset(word) and (lengths is None or len(word) in lengths)
