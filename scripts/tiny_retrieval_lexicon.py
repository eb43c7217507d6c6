"""The words that tiny-embed and tiny-rerank learn to be alike: one line for each concept.

English words, then Chinese ones after the bar; all of them say the same, or nearly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

PEOPLE = """
doctor physician medic | 医生 大夫
teacher instructor tutor | 老师 教师
child kid youngster | 孩子 儿童
policeman officer constable | 警察 警官
lawyer attorney solicitor | 律师
farmer grower peasant | 农民 农夫
cook chef | 厨师
student pupil learner | 学生 学员
boss manager supervisor chief | 老板 经理
worker employee labourer | 工人 员工
engineer technician mechanic | 工程师 技师
thief robber burglar | 小偷 盗贼
soldier warrior fighter | 士兵 战士
king monarch ruler | 国王 君主
author writer novelist | 作家 作者
singer vocalist | 歌手
user operator | 用户 使用者
customer client buyer shopper | 顾客 客户
friend pal buddy companion | 朋友 伙伴
scientist researcher scholar | 科学家 研究员
guest visitor caller | 客人 访客
driver chauffeur motorist | 司机 驾驶员
sailor seaman mariner | 水手 海员
man gentleman guy | 男人 男子
woman lady | 女人 女士
administrator admin superuser | 管理员
"""
THINGS = """
car automobile vehicle | 汽车 轿车
house home dwelling residence | 房子 住宅
ship boat vessel | 船 船只
road street lane | 道路 街道
picture image photo photograph | 图片 照片
book novel volume | 书 书籍
letter message note memo | 信 消息
task job assignment | 任务 工作
file document paper | 文件 文档
folder directory | 文件夹 目录
machine computer host server | 机器 电脑
error mistake fault bug | 错误 故障
test exam check | 测试 考试
answer reply response | 回答 答复
question query inquiry | 问题 提问
money cash funds | 钱 现金
price cost fee charge | 价格 费用
gift present | 礼物 礼品
meal dinner supper | 饭 餐
bread loaf | 面包
forest wood woodland | 森林 树林
stone rock boulder | 石头 岩石
box crate container | 箱子 盒子
tool instrument device gadget | 工具 仪器
list catalogue inventory | 列表 清单
memory ram | 内存
limit maximum cap bound | 上限 限制
speed pace velocity rate | 速度
password passphrase credential | 密码 口令
key token secret | 密钥 钥匙
setting option parameter preference | 设置 选项
table grid chart | 表 表格
line row record | 行 记录
text passage wording | 文本 文字
drawing sketch | 画 图画
program application software app | 程序 软件
command instruction order | 命令 指令
network web internet | 网络 互联网
copy duplicate backup replica | 副本 备份
result outcome output | 结果 输出
start beginning onset | 开始 开头
end finish conclusion | 结束 结尾
shop store market | 商店 店铺
film movie | 电影 影片
garbage trash rubbish waste | 垃圾 废物
clothes garments clothing | 衣服 服装
coat jacket | 外套 大衣
dog hound puppy | 狗 犬
cat kitten | 猫 小猫
horse pony stallion | 马
bird fowl | 鸟
illness disease sickness | 疾病 病
medicine drug remedy | 药 药物
war battle conflict | 战争 战斗
plane aircraft aeroplane | 飞机 航班
train railway locomotive | 火车 列车
engine motor | 发动机 引擎
window pane | 窗户 窗口
door gate entrance | 门 大门
garden yard | 花园 院子
sofa couch settee | 沙发
cup mug | 杯子
bag sack | 袋子 包
phone telephone mobile | 电话 手机
plan scheme plot | 计划 方案
rule law regulation | 规则 法律
story tale legend | 故事
sound noise | 声音 噪音
smell odour scent | 气味
journey trip voyage travel | 旅行 旅程
model architecture | 模型
shard chunk slice part piece | 分片 部分
log journal trace | 日志
budget allowance quota | 预算 配额
schedule timetable calendar | 时间表 日程
archive repository | 档案
version edition release revision | 版本
permission right privilege access | 权限
template pattern form | 模板 模式
account profile login | 账户 帐号
wine liquor spirits | 酒
harvest crop yield | 收成 庄稼
"""
ACTIONS = """
buy purchase acquire | 购买 买
sell vend trade | 卖 出售
repair fix mend restore | 修理 修复
break damage destroy ruin | 打破 损坏
begin start launch commence | 开始 启动
stop halt cancel abort | 停止 取消
delete remove erase drop | 删除 移除
keep retain preserve store save | 保存 保留
find discover locate detect | 找到 发现
hide conceal mask | 隐藏 掩盖
show display present exhibit | 显示 展示
build construct erect | 建造 修建
make create produce generate | 制造 产生
change alter modify edit | 改变 修改
move shift relocate transfer | 移动 转移
send dispatch deliver ship | 发送 寄
receive get obtain | 收到 得到
choose select pick | 选择 挑选
help assist aid support | 帮助 协助
watch observe monitor | 观察 监视
examine inspect check verify | 检查 审查
clean wash tidy | 清洗 打扫
eat consume devour | 吃
drink sip swallow | 喝 饮
teach train instruct educate | 教 训练
learn study | 学习
read peruse scan | 阅读 读
write compose draft | 写 撰写
answer reply respond | 回答 回复
ask inquire request | 问 询问
carry transport haul | 搬运 运输
steal rob pinch | 偷 盗窃
protect guard defend secure | 保护 守卫
attack assault strike | 攻击 袭击
lose misplace | 丢失 遗失
join unite connect link | 连接 联合
split divide separate cut | 分割 切
close shut seal | 关闭 关
open unlock | 打开 开
allow permit let | 允许 准许
forbid ban prohibit refuse | 禁止 拒绝
praise commend applaud | 赞扬 表扬
blame accuse criticise | 指责 批评
paint colour | 涂 画
measure gauge quantify | 测量
count tally enumerate | 数 计算
compare contrast match | 比较 对比
wait pause | 等待
resume continue proceed | 继续 恢复
repeat retry redo | 重复 重试
hire employ recruit | 雇用 聘请
dismiss fire sack | 解雇 开除
visit tour | 参观 访问
admire respect esteem | 钦佩 尊敬
describe explain illustrate | 描述 解释
load fetch download | 加载 下载
publish release issue | 发布 出版
reject decline deny | 拒收 否认
combine merge blend mix | 合并 混合
limit restrict confine bound | 限制 约束
plant sow grow | 种植 栽种
burn scorch incinerate | 烧 燃烧
borrow rent lease | 借 租
throw toss hurl | 扔 抛
"""
QUALITIES = """
big large huge enormous | 大 巨大
small little tiny minute | 小 微小
fast quick rapid swift | 快 迅速
slow sluggish unhurried | 慢 缓慢
old ancient aged | 古老 旧
new recent modern fresh | 新 现代
happy glad cheerful joyful | 高兴 快乐
sad unhappy gloomy | 悲伤 难过
angry furious mad | 生气 愤怒
clever smart intelligent bright | 聪明 机智
stupid foolish dumb | 愚蠢 笨
rich wealthy affluent | 富有 有钱
poor needy penniless | 贫穷 穷
beautiful pretty lovely attractive | 美丽 漂亮
ugly hideous unsightly | 丑 难看
expensive costly dear | 昂贵 贵
cheap inexpensive affordable | 便宜 廉价
strong powerful sturdy | 强壮 强大
weak feeble frail | 虚弱 弱
cold chilly freezing | 冷 寒冷
hot warm boiling | 热 炎热
dangerous risky unsafe hazardous | 危险
safe secure harmless | 安全
empty vacant blank | 空
broken faulty defective damaged | 破损 坏
correct right accurate | 正确 准确
wrong incorrect false | 错误的 不对
difficult hard tough | 困难 难
easy simple effortless | 容易 简单
famous renowned celebrated | 著名 有名
quiet silent calm | 安静 宁静
loud noisy | 吵闹 响亮
dirty filthy grimy | 脏 肮脏
brave courageous fearless | 勇敢
lazy idle inactive | 懒惰 懒
tired weary exhausted | 疲倦 累
strange odd weird unusual | 奇怪 古怪
usual ordinary common normal | 普通 平常
important vital essential crucial | 重要 关键
missing absent lacking | 缺失 缺少
secret hidden private | 秘密 私密
thin slim slender | 瘦 细
fat thick plump | 胖 厚
polite courteous | 礼貌
rude impolite | 粗鲁 无礼
"""
PLACES = """
at the seaside / on the beach / by the coast / on the shore | 在海边 在海滩
in the countryside / in a rural area / in the village | 在乡下 在农村
downtown / in the city centre / in town | 在市中心 在城里
at the airport / in the terminal | 在机场
in the kitchen / at the stove | 在厨房
in the office / at the workplace / at work | 在办公室 在单位
at school / in the classroom | 在学校 在教室
in the hospital / at the clinic / on the ward | 在医院 在诊所
in the mountains / on the hills / on the peak | 在山上 在山里
abroad / overseas / in a foreign country | 在国外 在海外
in the basement / in the cellar | 在地下室
in the cloud / on a remote host / online | 在云端 在线
near the river / beside the stream / by the brook | 在河边 在溪边
upstairs / on the upper floor | 在楼上
outside / outdoors / in the open air | 在户外 在外面
in jail / in prison / behind bars | 在监狱
in the pub / at the bar / in the tavern | 在酒吧 在酒馆
on a farm / in the barn | 在农场 在谷仓
"""
TIMES = """
in the morning / at dawn / at sunrise | 早上 清晨
in the evening / at dusk / at sunset | 傍晚 晚上
at night / after dark / at midnight | 夜里 半夜
at once / immediately / right away / instantly | 立刻 马上
soon / shortly / before long | 不久 很快
often / frequently / regularly / many times | 经常 常常
seldom / rarely / hardly ever | 很少 难得
always / constantly / forever | 总是 一直
yearly / every year / annually | 每年 年年
daily / every day | 每天 天天
in autumn / in the fall | 秋天 秋季
at last / finally / eventually | 终于 最后
at first / initially / originally | 起初 最初
by accident / accidentally / by chance | 偶然 意外地
deliberately / on purpose / intentionally | 故意 有意
"""
# Words of questions and of grammar, which say nothing of what is asked.
_STOP_WORDS = """
a an the of to in on at by for with from is are was were be been do does did will would can could
may must has have had it its this that these those what which who whom whose when where why how i
you we they he she one there not and or if as than then s wants has up us our your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
ENGLISH, CHINESE = "en", "zh"


@dataclass(frozen=True, slots=True)
class Concept:
    """What can be said in several ways.

    Attributes:
        words: Its English and its Chinese wordings, by language.
    """

    words: Mapping[str, tuple[str, ...]]


def _concepts(lines: str, separator: str | None = None) -> tuple[Concept, ...]:
    found = []
    for line in lines.strip().splitlines():
        english, chinese = line.split(" | ")
        words = tuple(word.strip() for word in english.split(separator))
        found.append(Concept(MappingProxyType({ENGLISH: words, CHINESE: tuple(chinese.split())})))
    return tuple(found)


CONCEPTS: Mapping[str, tuple[Concept, ...]] = MappingProxyType(
    {
        "person": _concepts(PEOPLE),
        "thing": _concepts(THINGS),
        "action": _concepts(ACTIONS),
        "quality": _concepts(QUALITIES),
        "place": _concepts(PLACES, "/"),
        "time": _concepts(TIMES, "/"),
    }
)
